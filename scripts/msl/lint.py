#!/usr/bin/env python3
# mypy: ignore-errors
# ruff: noqa
"""lint.py k.metal...: would the real Metal compiler take it? clang's C++-for-OpenCL front end + walks over its AST."""

import json, os, re, subprocess, sys, tempfile

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, here)
import mslc

CLANG = os.environ.get("MSL_CLANG", "clang++")
BASE = [
    "-cc1",
    "-x",
    "clcpp",
    "-cl-std=clc++2021",
    "-triple",
    "spir64-unknown-unknown",
    "-cl-ext=-all,+cl_khr_fp16,+__opencl_c_generic_address_space",
    "-cl-single-precision-constant",
    "-fsyntax-only",
    "-Wall",
    "-Wno-unknown-attributes",
    "-Wno-unused",
    "-Wno-unknown-pragmas",
    "-Werror=pre-c++17-compat",
    "-Werror=vla",
    "-Werror=return-type",
    "-Werror=uninitialized",
    "-Werror=infinite-recursion",
    "-include",
    here + "/shim/metal_lint.h",
    "-I" + here + "/shim/lint",
    "-fno-caret-diagnostics",
]
SIZE = dict(
    char=1,
    uchar=1,
    bool=1,
    half=2,
    bfloat=2,
    short=2,
    ushort=2,
    int=4,
    uint=4,
    float=4,
    long=8,
    ulong=8,
)
RESERVED = {
    "vertex",
    "fragment",
    "kernel",
    "device",
    "thread",
    "threadgroup",
    "constant",
    "sampler",
    "texture",
    "half",
    "bfloat",
    "uint",
    "ushort",
    "uchar",
    "ulong",
    "metal",
    "visible",
    "intersection",
    "mesh",
    "object",
    "ray_data",
    "object_data",
    "threadgroup_imageblock",
}


def lint(path, defs=()):
    out = []
    try:
        flat = mslc.flatten(path)
    except OSError as e:
        return ["%s: %s" % (path, e)]
    if not re.search(r"^\s*#\s*include\s*<metal_stdlib>", flat, re.M):
        out.append("%s: error: no #include <metal_stdlib>" % path)
    if re.search(r"^\s*#\s*include\s*<(?!metal_|simd/)", flat, re.M):
        out.append("%s: error: only <metal_*> headers exist in MSL" % path)
    r = subprocess.run(
        [sys.executable, here + "/mslc.py", "json", path], capture_output=True, text=True
    )  # signatures
    if r.returncode:
        out.append("%s: %s" % (path, r.stderr.strip()))
    with tempfile.NamedTemporaryFile("w", suffix=".metal", delete=False) as f:
        f.write(
            '#include <metal_stdlib>\nstruct msl_marker;\n#line 1 "%s"\n%s\n'
            % (os.path.basename(path), flat)
        )
    r = subprocess.run([CLANG] + BASE + list(defs) + [f.name], capture_output=True, text=True)
    known = 0
    errs = [l for l in r.stderr.split("\n") if ": error:" in l or ": fatal" in l]
    notes = r.stderr.split("\n")
    for i, l in enumerate(
        notes
    ):  # copying a struct out of `constant` is legal MSL, unknown to OpenCL C++
        if "no matching constructor for initialization" in l and any(
            "'__constant' to object in address space '__generic'" in x for x in notes[i + 1 : i + 3]
        ):
            errs.remove(l)
            known += 1
    out += errs
    if errs:
        os.unlink(f.name)
        return out
    r = subprocess.run(
        [CLANG] + BASE + list(defs) + ["-w", "-ast-dump=json", f.name],
        capture_output=True,
        text=True,
    )
    os.unlink(f.name)
    top = json.loads(r.stdout)["inner"]
    i = max(k for k, n in enumerate(top) if n.get("name") == "msl_marker")
    line = [0]
    calls = {}
    names = {}

    def bad(msg):
        out.append("%s:%s: error: %s" % (os.path.basename(path), line[0], msg))

    def where(n):
        for s in (n.get("loc", {}), n.get("range", {}).get("begin", {})):
            s = s.get("expansionLoc", s)
            if "presumedLine" in s or "line" in s:
                line[0] = s.get("presumedLine", s.get("line"))

    def walk(n, fn, obj=False):
        if not isinstance(n, dict) or "kind" not in n:
            return
        where(n)
        k = n["kind"]
        t = n.get("type", {}).get("qualType", "")
        if n.get("isImplicit") and k not in ("ImplicitCastExpr",):
            return
        if (
            k in ("ParmVarDecl", "VarDecl", "FieldDecl", "TypedefDecl", "TypeAliasDecl")
            and "__generic" in t
        ):
            bad(
                "%s: pointer or reference without address space (device, constant, threadgroup, thread)"
                % n.get("name", "?")
            )
        if k in ("FunctionDecl", "CXXMethodDecl"):
            if "__generic" in t.split("(")[0]:
                bad("%s: returns a pointer or reference without address space" % n.get("name"))
            if fn:
                pass
            fn = n["id"] if "previousDecl" not in n else n["previousDecl"]
            names[n["id"]] = names[fn] = n.get("name")
            calls.setdefault(fn, set())
            names.setdefault("prev", {})
        if (
            k
            in (
                "CStyleCastExpr",
                "CXXReinterpretCastExpr",
                "CXXStaticCastExpr",
                "CXXFunctionalCastExpr",
                "CXXConstCastExpr",
            )
            and "__generic" in t
        ):
            bad("cast to a pointer without address space")
        if k in (
            "LambdaExpr",
            "GotoStmt",
            "CXXNewExpr",
            "CXXDeleteExpr",
            "CXXThrowExpr",
            "CXXTryStmt",
            "CXXDynamicCastExpr",
            "CXXTypeidExpr",
            "GCCAsmStmt",
        ):
            bad({"LambdaExpr": "lambda", "GotoStmt": "goto"}.get(k, k) + " is not MSL")
        if k == "VarDecl":
            if fn and n.get("storageClass") == "static":
                bad("%s: static local variable" % n.get("name"))
            if fn is None and "__constant" not in t:
                bad("%s: program-scope variable must be constant" % n.get("name"))
            if fn and "__local " in t and "*" not in t and "&" not in t:
                m = re.match(r"(?:const )?__local (?:const )?(\w+?)([234]?)((?:\[\d+\])*)$", t)
                if m and m.group(1) in SIZE:
                    s = SIZE[m.group(1)] * {"": 1, "2": 2, "3": 4, "4": 4}[m.group(2)]
                    for d in re.findall(r"\d+", m.group(3)):
                        s *= int(d)
                    tgmem[fn] = tgmem.get(fn, 0) + s
                    if tgmem[fn] > 32768:
                        bad(
                            "more than 32 KB of threadgroup memory in %s (%d bytes)"
                            % (names[fn], tgmem[fn])
                        )
        if k in ("VarDecl", "ParmVarDecl", "FunctionDecl") and n.get("name") in RESERVED:
            bad("%s is a reserved word of MSL" % n["name"])
        if k == "CXXRecordDecl" and any(b for b in n.get("bases", [])):
            pass
        if k == "MemberExpr" and "<bound member" in t:
            b = (n.get("inner") or [{}])[0]
            src = (
                (b.get("inner") or [{}])[0].get("type", {}).get("qualType", "")
                if b.get("castKind") == "AddressSpaceConversion"
                else b.get("type", {}).get("qualType", "")
            )
            if re.match(r"(const )?__(global|local|constant)", src) and not n.get(
                "name", ""
            ).startswith(("operator", ".operator")):
                bad("method %s called on an object outside thread memory" % n.get("name"))
            if fn:
                calls[fn].add(n.get("referencedMemberDecl"))
        if (
            k == "DeclRefExpr"
            and fn
            and n.get("referencedDecl", {}).get("kind") in ("FunctionDecl", "CXXMethodDecl")
        ):
            calls[fn].add(n["referencedDecl"]["id"])
        for c in n.get("inner", []):
            walk(c, fn)

    tgmem = {}
    for n in top[i + 1 :]:
        walk(n, None)
    seen, stack = set(), []

    def dfs(f):
        if f in stack:
            out.append("%s: error: recursion through %s" % (os.path.basename(path), names.get(f)))
            return
        if f in seen or f not in calls:
            return
        seen.add(f)
        stack.append(f)
        for g in calls[f]:
            dfs(g)
        stack.pop()

    for f in list(calls):
        dfs(f)
    for no, l in enumerate(flat.split("\n"), 1):
        if re.search(
            r"(?<!thread )(?<!device )(?<!constant )(?<!threadgroup )(?<!const )\bauto\s*&",
            re.sub(r"//.*", "", l),
        ):
            out.append("%s: error: `auto &` without address space" % os.path.basename(path))
    return list(dict.fromkeys(out))


if __name__ == "__main__":
    rc = 0
    for p in [a for a in sys.argv[1:] if not a.startswith("-D")]:
        e = lint(p, [a for a in sys.argv[1:] if a.startswith("-D")])
        print("%s: %s" % (p, "clean" if not e else "%d finding(s)" % len(e)))
        rc |= bool(e)
        for x in e[:6]:
            print("   ", x)
    sys.exit(rc)
