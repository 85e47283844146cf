#!/usr/bin/env python3
# mypy: ignore-errors
# ruff: noqa
"""mslc: one source step for three compilers.
  mslc.py flat  k.metal          one self-contained MSL text (local #includes spliced) -> what Metal gets at run time
  mslc.py host  k.metal -o k.cpp C++ for clang (metal_on_host.h)
  mslc.py cuda  k.metal -o k.cu  CUDA C++ for NVRTC/nvcc (metal_on_cuda.h)
  mslc.py json  k.metal          reflection: kernel -> arguments (what the Swift launcher needs)
Everything it rewrites, line numbers kept:
  1. 1.0 -> 1.0f, 1.0h -> half(1.0f)        (MSL literals are single precision; C++ ones are double)
  2. program-scope `constant T x`  -> constant_decl T x
  3. function-scope `threadgroup T x[n];`   -> threadgroup_decl T x[n];   (not pointers/references)
  4. `kernel void f(params [[attr]])`       -> plain function + generated entry point
  5. device, constant, threadgroup, thread -> msl_device, ... (CUDA's __device__ expands to the word `device`)
"""

import re, sys, os, json

TOK = re.compile(
    r"""(?P<ws>\s+|//[^\n]*|/\*.*?\*/)|(?P<pp>^[ \t]*\#(?:[^\n\\]|\\.|\\\n)*)|(?P<str>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
|(?P<num>(?:0[xX][0-9a-fA-F]+[uUlL]*|(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?(?:bf|BF|[a-zA-Z]+)?))|(?P<id>[A-Za-z_]\w*)|(?P<attr>\[\[|\]\])|(?P<p>.)""",
    re.S | re.X | re.M,
)
BUILTINS = {
    "thread_position_in_threadgroup",
    "threadgroup_position_in_grid",
    "thread_position_in_grid",
    "threads_per_threadgroup",
    "threadgroups_per_grid",
    "threads_per_grid",
    "thread_index_in_threadgroup",
    "simdgroup_index_in_threadgroup",
    "thread_index_in_simdgroup",
    "simdgroups_per_threadgroup",
    "threads_per_simdgroup",
}

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
INCLUDE = os.path.join(ROOT, "swift", "GPUSources", "include")


def flatten(path, seen=None):
    seen = set() if seen is None else seen
    seen.add(os.path.abspath(path))
    out = []
    text = re.sub(
        r"#ifndef __METAL_VERSION__\n.*?\n#endif", "\n\n", open(path).read(), flags=re.S
    )  # the part for C alone
    for no, ln in enumerate(text.split("\n"), 1):
        m = re.match(r'\s*#\s*include\s+"([^"]+)"', ln)
        if not m:
            out.append(ln)
            continue
        q = os.path.join(os.path.dirname(os.path.abspath(path)), m.group(1))
        if not os.path.exists(q):
            q = os.path.join(INCLUDE, m.group(1))
        if os.path.abspath(q) not in seen:
            out += ['#line 1 "%s"' % os.path.basename(q), flatten(q, seen)]
        out.append('#line %d "%s"' % (no + 1, os.path.basename(path)))
    return "\n".join(out)


def die(msg):
    sys.exit("mslc: error: " + msg)


def tokens(s):
    return [(m.lastgroup, m.group()) for m in TOK.finditer(s)]


def fix_num(t):
    if re.match(r"0[xX]", t) or not re.search(r"[.eE]", t):
        return t
    m = re.match(r"(.*?[\d.])(bf|BF|[hHfF]?)$", t)
    if not m:
        die("bad floating literal %r (MSL has no double)" % t)
    v, s = m.groups()
    return (
        "half(%sf)" % v if s in "hH" and s else "bfloat(%sf)" % v if s in ("bf", "BF") else v + "f"
    )


def parse_param(toks):
    """tokens of one parameter -> dict(type, name, attr, arg)"""
    txt, attrs, depth, cur = [], [], 0, ""
    for k, t in toks:
        if t == "[[":
            depth += 1
            cur = ""
            continue
        if t == "]]":
            depth -= 1
            attrs.append(cur.strip())
            continue
        if depth:
            cur += t
        else:
            txt.append(t)
    decl = re.sub(r"\s+", " ", "".join(txt)).strip()
    m = re.match(r"(.*?)(\w+)$", decl)
    if not m or len(attrs) != 1:
        die("kernel parameter needs exactly one [[attribute]]: %r" % decl)
    a = re.match(r"(\w+)(?:\((\d+)\))?$", attrs[0])
    if not a:
        die("unknown attribute [[%s]]" % attrs[0])
    ty, name, attr, idx = m.group(1).strip(), m.group(2), a.group(1), a.group(2)
    space = (re.findall(r"\b(device|constant|threadgroup|thread)\b", ty) + [None])[0]
    if attr == "buffer":
        if ty.endswith("*") and space in ("device", "constant"):
            kind = "pointer"
        elif ty.endswith("&") and space == "constant":
            kind = "bytes"
        else:
            die("[[buffer]] parameter %r must be device/constant T* or constant T&" % decl)
    elif attr == "threadgroup":
        if not (ty.endswith("*") and space == "threadgroup"):
            die("[[threadgroup]] parameter %r" % decl)
        kind = "threadgroup"
    elif attr in BUILTINS:
        if not re.fullmatch(r"(uint|ushort)[23]?", ty):
            die("[[%s]] must be uint/ushort (scalar, 2, 3): %r" % (attr, decl))
        if (
            attr[-1] in "xp"
            and ("index" in attr or "simdgroup" in attr)
            and ty not in ("uint", "ushort")
        ):
            die("%s is scalar" % attr)
        kind = "builtin"
    else:
        die("unsupported attribute [[%s]]" % attr)
    return dict(type=ty, name=name, attr=attr, index=int(idx) if idx else None, kind=kind)


def transform(src):
    T = tokens(src)
    out = []
    kernels = []
    brace = 0
    paren = 0
    i = 0
    nsbrace = []

    def nxt(j):  # next non-space token index
        j += 1
        while j < len(T) and T[j][0] in ("ws", "pp"):
            j += 1
        return j

    stmt = ""
    while i < len(T):
        k, t = T[i]
        if k == "pp":
            out.append(
                TOK.sub(
                    lambda m: (
                        fix_num(m.group())
                        if m.lastgroup == "num"
                        else rename(m.group())
                        if m.lastgroup == "id"
                        else m.group()
                    ),
                    t[t.index("#") + 1 :],
                ).join([t[: t.index("#") + 1], ""])
                if re.match(r"\s*#\s*define", t)
                else t
            )
            i += 1
            continue
        if k == "num":
            out.append(fix_num(t))
            stmt += t
            i += 1
            continue
        if k == "p":
            if t == "{":
                nsbrace.append(bool(re.search(r"\bnamespace\b", stmt)))
                stmt = ""
            elif t == "}":
                nsbrace and nsbrace.pop()
                stmt = ""
            elif t == ";":
                stmt = ""
            elif t == "(":
                paren += 1
            elif t == ")":
                paren -= 1
        stmt += t if k != "ws" else " "
        brace = sum(1 for n in nsbrace if not n)
        if k == "id" and t == "constant" and brace == 0 and paren == 0:
            j = i
            ahead = ""
            while j < len(T) and T[j][1] not in "=;({[":
                ahead += T[j][1]
                j = nxt(j)
            if T[j][1] in "=;[{" and not re.search(r"[*&]", ahead):
                t = "constant_decl"
        if k == "id" and t == "threadgroup" and brace > 0 and paren == 0:
            j = i
            ahead = ""
            while j < len(T) and T[j][1] not in "=;({[":
                ahead += T[j][1]
                j = nxt(j)
            if T[j][1] in ";[" and not re.search(r"[*&]", ahead):
                t = "threadgroup_decl"
        if k == "id" and t == "kernel" and brace == 0:
            mx = re.search(r"max_total_threads_per_threadgroup\((.*)\)\s*\]\]", stmt)
            j = nxt(i)
            if T[j][1] != "void":
                die("kernel must return void")
            j = nxt(j)
            name = T[j][1]
            j = nxt(j)
            if T[j][1] != "(":
                die("kernel %s: expected (" % name)
            depth, params, cur, a = 1, [], [], 0
            while True:
                j += 1
                kk, tt = T[j]
                if kk == "ws" and "//" in tt or "/*" in tt:
                    continue
                a += (tt == "[[") - (tt == "]]")
                depth += (tt in "([") * (kk == "p") - (tt in ")]") * (kk == "p")
                if depth == 0 or (tt == "," and depth == 1 and a == 0):
                    if "".join(x[1] for x in cur).strip():
                        params.append(parse_param(cur))
                    cur = []
                    if depth == 0:
                        break
                else:
                    cur.append((kk, tt))
            used = [p["index"] for p in params if p["attr"] == "buffer"]
            if len(set(used)) != len(used) or None in used:
                die("kernel %s: buffer indices not unique" % name)
            nl = sum(x[1].count("\n") for x in T[i : j + 1])
            out.append(
                "MSL_KERNEL void %s(%s)"
                % (name, rename(", ".join(p["type"] + " " + p["name"] for p in params)))
                + "\n" * nl
            )
            kernels.append(dict(name=name, params=params, max_threads=mx.group(1) if mx else None))
            i = j + 1
            continue
        out.append("msl_" + t if k == "id" and t in SPACES else t)
        i += 1
    return "".join(out), kernels


SPACES = {"inline", "device", "constant", "threadgroup", "thread", "kernel"}


def rename(text):
    return re.sub(r"\b(device|constant|threadgroup|thread)\b(?!\w)", r"msl_\1", text)


def strip_ref(ty):
    return re.sub(r"\b(constant|const|device)\b", "", ty).replace("&", "").replace("*", "").strip()


def gen_host(kernels):
    o = []
    for K in kernels:
        args, tg = [], 0
        for p in K["params"]:
            if p["kind"] == "pointer":
                args.append("(%s)c.buf[%d]" % (p["type"], p["index"]))
            elif p["kind"] == "bytes":
                args.append("*(const %s *)c.buf[%d]" % (strip_ref(p["type"]), p["index"]))
            elif p["kind"] == "threadgroup":
                args.append("(%s)c.tg[%d]" % (p["type"], p["index"]))
            else:
                args.append("msl_builtin<%s>(c.%s)" % (p["type"], p["attr"]))
        kinds = "".join(
            {
                "pointer": "w"
                if "const" not in re.findall(r"\w+", p["type"]) and "constant" not in p["type"]
                else "r",
                "bytes": "r",
            }.get(p["kind"], "")
            for p in K["params"]
        )
        idx = ",".join(
            "{%d,%d,%s}"
            % (
                p["index"],
                "const" not in p["type"],
                "sizeof(%s)" % strip_ref(p["type"]) if p["kind"] == "bytes" else "0",
            )
            for p in K["params"]
            if p["attr"] == "buffer"
        )
        o.append(
            "static void %s__thread(const msl_ctx &c) { %s(%s); }"
            % (K["name"], K["name"], ", ".join(args))
        )
        o.append("static const msl_buf_info %s__info[] = {%s};" % (K["name"], idx or "{-1,0,0}"))
        o.append("MSL_REGISTER(%s, %s)" % (K["name"], K["max_threads"] or 1024))
    return "\n".join(o)


def gen_cuda(kernels):
    o = []
    for K in kernels:
        ps, args, ntg = [], [], 0
        for p in sorted(
            (p for p in K["params"] if p["attr"] == "buffer"), key=lambda p: p["index"]
        ):
            ps.append(
                ("%s %s" % (p["type"], p["name"]))
                if p["kind"] == "pointer"
                else "const __grid_constant__ %s %s" % (strip_ref(p["type"]), p["name"])
            )
        for p in K["params"]:
            if p["kind"] in ("pointer", "bytes"):
                args.append(p["name"])
            elif p["kind"] == "threadgroup":
                if ntg:
                    ps.append("uint msl_tgoff%d" % p["index"])
                args.append(
                    "(%s)(msl_dyn_smem%s)"
                    % (p["type"], " + msl_tgoff%d" % p["index"] if ntg else "")
                )
                ntg += 1
            else:
                args.append("msl_builtin<%s>(msl_%s())" % (p["type"], p["attr"]))
        o.append(
            # A source may ask for a number of threadgroups at once: #define MSL_BLOCKS_kernel 3
            "#if !defined(MSL_SOME) || defined(MSL_WITH_%s)\n#ifndef MSL_BLOCKS_%s\n#define MSL_BLOCKS_%s 1\n#endif\n"
            'extern "C" __global__ void __launch_bounds__(%s, MSL_BLOCKS_%s) msl_%s(%s) { MSL_ENTER %s(%s); }\n#endif'
            % (
                K["name"],
                K["name"],
                K["name"],
                K["max_threads"] or 1024,
                K["name"],
                K["name"],
                ", ".join(ps),
                K["name"],
                ", ".join(args),
            )
        )
    return "\n".join(o)


if __name__ == "__main__":
    mode, path = sys.argv[1:3]
    out = sys.argv[sys.argv.index("-o") + 1] if "-o" in sys.argv else None
    flat = flatten(path)
    if mode == "flat":
        text = flat
    else:
        body, ks = transform(flat)
        base = os.path.basename(path)
        if mode == "json":
            text = json.dumps(ks, indent=1)
        elif mode == "host":
            text = '#include "metal_on_host.h"\n#line 1 "%s"\n%s\n#line 1 "%s.entries"\n%s\n' % (
                base,
                body,
                base,
                rename(gen_host(ks)),
            )
        elif mode == "cuda":
            text = '#include "metal_on_cuda.h"\n#line 1 "%s"\n%s\n#line 1 "%s.entries"\n%s\n' % (
                base,
                body,
                base,
                rename(gen_cuda(ks)),
            )
        else:
            die("mode")
    open(out, "w").write(text) if out else print(text)
