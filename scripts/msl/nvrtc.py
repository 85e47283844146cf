# mypy: ignore-errors
# ruff: noqa
"""nvrtc.py k.cu out.cubin [arch] [-D...]: compile with libnvrtc by ctypes: what the engine does at run time."""

import ctypes as C, sys, os, glob

here = os.path.dirname(os.path.abspath(__file__))


def lib():
    for p in [
        os.environ.get("NVRTC", ""),
        "/usr/local/cuda/lib64/libnvrtc.so",
        "/usr/local/cuda/lib64/libnvrtc.so.13",
        "libnvrtc.so.13",
        "libnvrtc.so",
    ] + glob.glob("/opt/*/.venv/lib/python3*/site-packages/nvidia/cu13/lib/libnvrtc.so.13"):
        for b in (
            glob.glob(os.path.dirname(p) + "/libnvrtc-builtins.so.13*") if p.startswith("/") else []
        ):
            C.CDLL(b, C.RTLD_GLOBAL)
        try:
            return C.CDLL(p) if p else None or 1 / 0
        except (OSError, ZeroDivisionError):
            pass
    sys.exit("no libnvrtc")


def compile(src, name, arch="sm_90", opts=()):
    n = lib()
    p = C.c_void_p()
    ck = lambda r: r == 0 or sys.exit("nvrtc error %d" % r)
    ck(n.nvrtcCreateProgram(C.byref(p), src.encode(), name.encode(), 0, None, None))
    o = [
        "--gpu-architecture=" + arch,
        "-default-device",
        "-std=c++14",
        "-I" + here + "/shim",
        "-I" + here + "/shim/cuda",
        "-diag-suppress=1097,1444,177,550",
    ] + list(opts)
    r = n.nvrtcCompileProgram(p, len(o), (C.c_char_p * len(o))(*[x.encode() for x in o]))
    z = C.c_size_t()
    n.nvrtcGetProgramLogSize(p, C.byref(z))
    b = C.create_string_buffer(z.value)
    n.nvrtcGetProgramLog(p, b)
    log = b.value.decode()
    if r:
        return None, log
    if arch.startswith("compute"):
        n.nvrtcGetPTXSize(p, C.byref(z))
        b = C.create_string_buffer(z.value)
        ck(n.nvrtcGetPTX(p, b))
        return b.value, log
    n.nvrtcGetCUBINSize(p, C.byref(z))
    b = C.create_string_buffer(z.value)
    ck(n.nvrtcGetCUBIN(p, b))
    return b.raw, log


if __name__ == "__main__":
    import time

    t = time.time()
    bin_, log = compile(
        open(sys.argv[1]).read(),
        os.path.basename(sys.argv[1]),
        sys.argv[3] if len(sys.argv) > 3 else "sm_90",
        sys.argv[4:],
    )
    print(log, end="")
    if bin_ is None:
        sys.exit(1)
    open(sys.argv[2], "wb").write(bin_)
    print("nvrtc: %s %d bytes in %.2f s" % (sys.argv[2], len(bin_), time.time() - t))
