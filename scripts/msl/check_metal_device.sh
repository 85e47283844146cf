#!/bin/sh
# Type-checks what only a Mac compiles, against the stub modules beside this file.
set -e
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for module in Metal ObjectiveC; do
    swiftc -swift-version 6 -emit-module -module-name $module -o "$work/$module.swiftmodule" \
        "$root/scripts/msl/metal_stub/$module.swift"
done
for module in CKernels GPUSources; do
    mkdir -p "$work/$module"
    printf 'module %s {\n' "$module" >"$work/$module/module.modulemap"
    for header in "$root/swift/$module/include/"*.h; do
        printf '    header "%s"\n' "$header" >>"$work/$module/module.modulemap"
    done
    printf '    export *\n}\n' >>"$work/$module/module.modulemap"
done
swiftc -swift-version 6 -typecheck -warnings-as-errors -module-name Compute -I "$work" \
    -I "$work/CKernels" -I "$work/GPUSources" "$root"/swift/Compute/*.swift
echo "MetalDevice.swift type-checks"
