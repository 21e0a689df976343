"""``snnfl deploy``: certificates, keys and runs of a SuperLink and SuperNodes on machines of their own."""


class DeployError(RuntimeError):
    """A deployment that cannot be made, reached or used; the text is one line that names the way out."""
