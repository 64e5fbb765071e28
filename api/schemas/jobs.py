"""Fine-tuning jobs: what is posted."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    StringConstraints,
    create_model,
    field_validator,
    model_validator,
)

from api.schemas.common import Wire
from core.errors import InvalidRequest
from models.loop_request import LoopRequest
from models.nn.methods import AnyMethod, parse_posted

DEFAULT_METHOD = "lora"
HYPERPARAMETERS = ("n_epochs", "batch_size", "learning_rate_multiplier")

Suffix = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9._-]*$")]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=255)]


def part_of_loop(name: str, *, fields: set[str]) -> type[Wire]:
    """Make a block of some of `LoopRequest`'s fields, so that their rules are written once."""
    chosen: dict[str, Any] = {
        key: (field.annotation, field)
        for key, field in LoopRequest.model_fields.items()
        if key in fields
    }
    return create_model(name, __base__=Wire, __module__=__name__, **chosen)


if TYPE_CHECKING:
    Hyperparameters = Wire
    Training = Wire
else:
    _fields = set(LoopRequest.model_fields)
    Hyperparameters = part_of_loop("Hyperparameters", fields=_fields & set(HYPERPARAMETERS))
    Training = part_of_loop("Training", fields=_fields - set(HYPERPARAMETERS))


class Supervised(Wire):
    """The options of supervised tuning."""

    hyperparameters: Hyperparameters | None = None


class MethodBlock(Wire):
    """OpenAI's `method`: how examples teach. Supervised is the only kind so far."""

    type: Literal["supervised"]
    supervised: Supervised | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_kinds(cls, block: Any) -> Any:
        if isinstance(block, dict) and block.get("type") in ("dpo", "reinforcement"):
            raise InvalidRequest(
                f"Tuning by {block['type']} is not offered; use the type 'supervised'.",
                code="unsupported_method",
                param="method.type",
            )
        return block


def _read_peft(block: Any) -> Any:
    return parse_posted({"type": DEFAULT_METHOD, **block}) if isinstance(block, dict) else block


class JobCreate(Wire):
    """A request to tune; `peft` and `training` are ours, the rest is OpenAI's."""

    model: Name
    training_file: Name
    validation_file: Name | None = None
    method: MethodBlock | None = None
    hyperparameters: Hyperparameters | None = Field(
        default=None, description="Deprecated by OpenAI: use `method.supervised.hyperparameters`."
    )
    suffix: Suffix | None = Field(default=None, description="A part of the tuned model's name.")
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    metadata: Metadata | None = None
    integrations: list[Any] | None = None
    peft: Annotated[AnyMethod, BeforeValidator(_read_peft)] | None = Field(
        default=None, description="What is trained; left out, as `model` was, else LoRA."
    )
    training: Training | None = None

    @field_validator("integrations")
    @classmethod
    def _refuse_integrations(cls, value: list[Any] | None) -> list[Any] | None:
        if value:
            raise InvalidRequest(
                "Integrations are not offered; leave `integrations` out.",
                code="unsupported_parameter",
                param="integrations",
            )
        return value

    @model_validator(mode="after")
    def _one_place_for_hyperparameters(self) -> "JobCreate":
        supervised = self.method.supervised if self.method else None
        if self.hyperparameters and supervised and supervised.hyperparameters:
            raise InvalidRequest(
                "Give hyperparameters once: in `method.supervised.hyperparameters`.",
                param="hyperparameters",
            )
        return self

    def loop(self) -> LoopRequest:
        """Return the training loop's values, from wherever they were given."""
        supervised = self.method.supervised if self.method else None
        chosen = (supervised.hyperparameters if supervised else None) or self.hyperparameters
        values: dict[str, Any] = {}
        for block in (chosen, self.training):
            values |= block.model_dump(exclude_unset=True) if block else {}
        return LoopRequest(**values)
