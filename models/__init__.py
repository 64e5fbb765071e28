"""The vocabulary that api and worker share.

`spec` says what is posted and run, `tables` holds the rows and the only SQL, `nn` the networks.
The two halves `tables` and `nn` never import each other.
"""
