"""What the errors of the packages mean that reach buckets and web servers: each has its own."""

PASSING = (408, 425, 429, 500, 502, 503, 504)  # status codes of a server that may recover


def root_cause(error: Exception) -> Exception:
    """The error itself, or what `fsspec` calls a missing file where a web server answered otherwise
    or not at all."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    return error if getattr(cause, "status", None) in (404, 410) else cause


def may_pass(error: Exception) -> bool:
    code = status_code(error)
    if code.isdecimal():
        return int(code) in PASSING
    if is_denied(error):
        return False
    of_a_network = (OSError, TimeoutError)
    return isinstance(error, of_a_network) or "aiohttp" in type(error).__module__


def is_denied(error: BaseException) -> bool:
    words = (
        "Forbidden",
        "Access Denied",
        "AccessDenied",
        "Anonymous caller",
        "Invalid Credentials",
    )
    return status_code(error) in ("401", "403") or any(word in str(error) for word in words)


def status_code(error: BaseException) -> str:
    """The code that a server answered with, if the error has one."""
    answer = getattr(error, "response", None)
    for holder, name in ((error, "status"), (error, "code"), (answer, "status_code")):
        if code := getattr(holder, name, None):
            return str(code)
    return ""


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
