"""A base for serving without C++ kernels: its products over weights that are laid out once."""

from models.nn.backbone import Backbone
from models.nn.kernels.prepacked import PREPACKED, Prepacked, is_worth_it
from models.nn.leaves import LinearLeaf
from models.nn.quantized import is_packed
from models.nn.shape import HEAD, path_of


def prepack(backbone: Backbone) -> bool:
    """Lay out every weight that is multiplied by, where that pays; return whether it does.

    It takes the bytes of those weights once more: what reads the base still finds them.
    """
    done = False
    for joint in backbone.joints():
        weight_oi = joint.weight.weight_oi
        if is_worth_it(weight_oi):
            joint.weight.kept[PREPACKED] = Prepacked(weight_oi)
            done = True
    places = (HEAD,) if backbone.is_flat else tuple(backbone.shape.linears)
    for place in places:
        leaf = backbone.network.get_submodule(path_of(place))
        if isinstance(leaf, LinearLeaf) and not is_packed(leaf.weight) and is_worth_it(leaf.weight):
            leaf.hold(leaf.weight, product=Prepacked(leaf.weight))
            done = True
    return done
