// swift-tools-version:6.0
import PackageDescription

// Targets stand in the order of their arrows: each may import only those above it.
let cFlags: [CSetting] = [
    // The kernels are far too slow unoptimised, also in debug builds. Contraction is off so that a
    // sum means the same bits in every instruction set; fused multiply-adds are written out.
    .unsafeFlags(["-O3", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off",
                  "-fno-math-errno"])
]
let swiftFlags: [SwiftSetting] = [.unsafeFlags(["-warnings-as-errors"])]

let package = Package(
    name: "pyds4",
    platforms: [.macOS(.v15)],
    products: [.library(name: "pyds4", type: .dynamic, targets: ["PyDS4"])],
    targets: [
        .target(name: "CKernels", path: "swift/CKernels", cSettings: cFlags),
        .target(name: "GGUF", path: "swift/GGUF", swiftSettings: swiftFlags),
        .target(name: "GPUSources", path: "swift/GPUSources", exclude: ["kernels.metal", "kernels.cu"],
                cSettings: cFlags + [.unsafeFlags(["-Wno-unknown-warning-option", "-Wno-c23-extensions"])]),
        .target(name: "Compute", dependencies: ["CKernels", "GPUSources"], path: "swift/Compute", exclude: ["Metal"],
                swiftSettings: swiftFlags),
        .target(name: "Model", dependencies: ["Compute", "GGUF"], path: "swift/Model",
                swiftSettings: swiftFlags),
        .target(name: "KVStore", path: "swift/KVStore", swiftSettings: swiftFlags),
        .target(name: "Engine", dependencies: ["Model", "KVStore"], path: "swift/Engine",
                swiftSettings: swiftFlags),
        .target(name: "CPyDS4", path: "swift/CPyDS4", cSettings: cFlags),
        .target(name: "PyDS4", dependencies: ["Engine", "CPyDS4"], path: "swift/PyDS4",
                swiftSettings: swiftFlags,
                // The library must load where no Swift is installed.
                linkerSettings: [.unsafeFlags(["-static-stdlib"], .when(platforms: [.linux]))]),
        .executableTarget(name: "GGUFFuzz", dependencies: ["GGUF"], path: "swift/GGUFFuzz",
                          swiftSettings: swiftFlags),
        .testTarget(name: "KVStoreTests", dependencies: ["KVStore", "Model", "Engine"], path: "tests/swift/KVStoreTests"),
        .testTarget(name: "ComputeTests", dependencies: ["Compute"], path: "tests/swift/ComputeTests"),
        .testTarget(name: "GGUFTests", dependencies: ["GGUF", "GGUFFuzz"], path: "tests/swift/GGUFTests"),
    ]
)
