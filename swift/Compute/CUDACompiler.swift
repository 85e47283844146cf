import GPUSources
#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

/// The kernels as machine code for one NVIDIA architecture, made by NVRTC once and then kept in a file.
enum CUDACompiler {
    /// - Parameters:
    ///   - architecture: "sm_90".
    ///   - isFresh: Compile, whatever was kept.
    /// - Throws: `ComputeError.device` when NVRTC is missing or refuses.
    static func kernels(architecture: String, isFresh: Bool = false) throws -> [UInt8] {
        let source = gpu_source_cuda_text()!
        let file = cacheDirectory().map { "\($0)/kernels-\(architecture)-\(hash(source)).cubin" }
        if !isFresh, let file, let kept = read(file), !kept.isEmpty { return kept }
        let compiled = try compile(source, architecture)
        if let file { write(compiled, file) }
        return compiled
    }

    // MARK: NVRTC

    private typealias Status = Int32
    private typealias Program = OpaquePointer?

    /// Where a driver's tools and Python's wheels put it.
    private static var libraries: [String] {
        let named = getenv("PYDS4_NVRTC").map { [String(cString: $0)] } ?? []
        return named + ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so", "/usr/local/cuda/lib64/libnvrtc.so"]
    }

    private static func compile(_ source: UnsafePointer<CChar>, _ architecture: String) throws -> [UInt8] {
        guard let library = libraries.lazy.compactMap({ dlopen($0, RTLD_NOW | RTLD_GLOBAL) }).first else {
            throw ComputeError.device(
                "backend 'cuda': NVIDIA's run-time compiler was not found; `pip install nvidia-cuda-nvrtc`, or "
                    + "name libnvrtc.so in PYDS4_NVRTC")
        }
        func find<F>(_ name: String) throws -> F {
            guard let symbol = dlsym(library, name) else {
                throw ComputeError.device("backend 'cuda': libnvrtc has no \(name)")
            }
            return unsafeBitCast(symbol, to: F.self)
        }
        let create: @convention(c) (UnsafeMutablePointer<Program>, UnsafePointer<CChar>, UnsafePointer<CChar>, Int32,
                                    OpaquePointer?, OpaquePointer?) -> Status = try find("nvrtcCreateProgram")
        let run: @convention(c) (Program, Int32, UnsafePointer<UnsafePointer<CChar>?>) -> Status
            = try find("nvrtcCompileProgram")
        let logSize: @convention(c) (Program, UnsafeMutablePointer<Int>) -> Status = try find("nvrtcGetProgramLogSize")
        let log: @convention(c) (Program, UnsafeMutablePointer<CChar>) -> Status = try find("nvrtcGetProgramLog")
        let size: @convention(c) (Program, UnsafeMutablePointer<Int>) -> Status = try find("nvrtcGetCUBINSize")
        let code: @convention(c) (Program, UnsafeMutablePointer<UInt8>) -> Status = try find("nvrtcGetCUBIN")

        var program: Program = nil
        guard create(&program, source, "pyds4.cu", 0, nil, nil) == 0 else {
            throw ComputeError.device("backend 'cuda': NVRTC cannot start")
        }
        let options = ["--gpu-architecture=\(architecture)", "-default-device", "-std=c++14",
                       "-diag-suppress=1097,1444,177,550"]
        let copies = options.map { strdup($0) }
        defer { copies.forEach { free($0) } }
        let status = run(program, Int32(options.count), copies.map { UnsafePointer($0) })
        guard status == 0 else {
            var count = 0
            _ = logSize(program, &count)
            var text = [CChar](repeating: 0, count: count + 1)
            _ = log(program, &text)
            let message = String(decoding: text.prefix(2000).prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            throw ComputeError.device("backend 'cuda': NVRTC refused the kernels for \(architecture): \(message)")
        }
        var count = 0
        _ = size(program, &count)
        return [UInt8](unsafeUninitializedCapacity: count) { buffer, used in
            _ = code(program, buffer.baseAddress!)
            used = count
        }
    }

    // MARK: Kept between runs

    private static func hash(_ text: UnsafePointer<CChar>) -> String {
        var value: UInt64 = 0xcbf2_9ce4_8422_2325
        var at = text
        while at.pointee != 0 {
            value = (value ^ UInt64(UInt8(bitPattern: at.pointee))) &* 0x100_0000_01b3
            at += 1
        }
        return String(value, radix: 16)
    }

    private static func cacheDirectory() -> String? {
        let base = getenv("XDG_CACHE_HOME").map { String(cString: $0) }
            ?? getenv("HOME").map { String(cString: $0) + "/.cache" }
        guard let base, !base.isEmpty else { return nil }
        mkdir(base, 0o755)
        let own = base + "/pyds4"
        mkdir(own, 0o755)
        return own
    }

    private static func read(_ path: String) -> [UInt8]? {
        guard let file = fopen(path, "rb") else { return nil }
        defer { fclose(file) }
        fseek(file, 0, SEEK_END)
        let size = ftell(file)
        rewind(file)
        guard size > 0 else { return nil }
        var bytes = [UInt8](repeating: 0, count: size)
        return fread(&bytes, 1, size, file) == size ? bytes : nil
    }

    /// Whole or not at all: another process may read it.
    private static func write(_ bytes: [UInt8], _ path: String) {
        let fresh = "\(path).\(getpid())"
        guard let file = fopen(fresh, "wb") else { return }
        let written = fwrite(bytes, 1, bytes.count, file)
        if fclose(file) == 0, written == bytes.count { rename(fresh, path) } else { unlink(fresh) }
    }
}
