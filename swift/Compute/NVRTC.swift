#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

/// NVIDIA's run-time compiler, found when it is first needed. Several threads may compile at once.
struct NVRTC: @unchecked Sendable {  // a handle of a library and functions of it
    private typealias Status = Int32
    private typealias Program = OpaquePointer?
    private let library: UnsafeMutableRawPointer

    /// Where a driver's tools and Python's wheels put it.
    private static var places: [String] {
        let named = getenv("PYDS4_NVRTC").map { [String(cString: $0)] } ?? []
        return named + ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so", "/usr/local/cuda/lib64/libnvrtc.so"]
    }

    /// nil when it is not installed.
    init?() {
        guard let found = Self.places.lazy.compactMap({ dlopen($0, RTLD_NOW | RTLD_GLOBAL) }).first else { return nil }
        library = found
    }

    private func find<F>(_ name: String) throws -> F {
        guard let symbol = dlsym(library, name) else {
            throw ComputeError.device("backend 'cuda': libnvrtc has no \(name)")
        }
        return unsafeBitCast(symbol, to: F.self)
    }

    /// - Returns: Machine code for `architecture`, "sm_90".
    /// - Throws: `ComputeError.device` with what the compiler says.
    func compile(_ source: UnsafePointer<CChar>, _ architecture: String, _ definitions: [String]) throws -> [UInt8] {
        let create: @convention(c) (UnsafeMutablePointer<Program>, UnsafePointer<CChar>, UnsafePointer<CChar>, Int32,
                                    OpaquePointer?, OpaquePointer?) -> Status = try find("nvrtcCreateProgram")
        let run: @convention(c) (Program, Int32, UnsafePointer<UnsafePointer<CChar>?>) -> Status
            = try find("nvrtcCompileProgram")
        let destroy: @convention(c) (UnsafeMutablePointer<Program>) -> Status = try find("nvrtcDestroyProgram")
        let logSize: @convention(c) (Program, UnsafeMutablePointer<Int>) -> Status = try find("nvrtcGetProgramLogSize")
        let log: @convention(c) (Program, UnsafeMutablePointer<CChar>) -> Status = try find("nvrtcGetProgramLog")
        let size: @convention(c) (Program, UnsafeMutablePointer<Int>) -> Status = try find("nvrtcGetCUBINSize")
        let code: @convention(c) (Program, UnsafeMutablePointer<UInt8>) -> Status = try find("nvrtcGetCUBIN")

        var program: Program = nil
        guard create(&program, source, "pyds4.cu", 0, nil, nil) == 0 else {
            throw ComputeError.device("backend 'cuda': NVRTC cannot start")
        }
        defer { _ = destroy(&program) }
        let options = ["--gpu-architecture=\(architecture)"] + Self.options + definitions.map { "-D\($0)" }
        let copies = options.map { strdup($0) }
        defer { copies.forEach { free($0) } }
        guard run(program, Int32(options.count), copies.map { UnsafePointer($0) }) == 0 else {
            var count = 0
            _ = logSize(program, &count)
            var text = [CChar](repeating: 0, count: count + 1)
            _ = log(program, &text)
            let message = String(decoding: text.prefix(2000).prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            throw ComputeError.device("backend 'cuda': NVRTC refused the kernels for \(architecture): \(message)")
        }
        var count = 0
        guard size(program, &count) == 0, count > 0 else {
            throw ComputeError.device("backend 'cuda': NVRTC knows no \(architecture); a newer one is needed")
        }
        return [UInt8](unsafeUninitializedCapacity: count) { buffer, used in
            _ = code(program, buffer.baseAddress!)
            used = count
        }
    }

    static let options = ["-default-device", "-std=c++14", "-diag-suppress=1097,1444,177,550"]
}
