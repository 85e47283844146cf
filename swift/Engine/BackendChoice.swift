import Compute
#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

extension EngineOptions {
    /// The backend that the options name; "auto" takes a GPU that is there and can hold the model, else the CPU.
    ///
    /// - Parameter weightByteCount: Of the model.
    /// - Throws: `EngineError.backendUnavailable`, saying what is missing.
    func makeBackend(weightByteCount: Int) throws -> (backend: any Backend, threads: Int) {
        switch backend {
        case .cpu:
            return try cpu()
        case .auto:
            guard let device = try? systemDevice(), weightByteCount < device.availableByteCount else { return try cpu() }
            return (GPUBackend(device, isExact: isExact), 1)
        case .cuda:
            return (GPUBackend(try CUDADevice(), isExact: isExact), 1)
        case .metal:
            #if canImport(Metal)
            return (GPUBackend(try MetalDevice(), isExact: isExact), 1)
            #else
            throw EngineError.backendUnavailable("backend 'metal' exists on macOS only; use 'cuda' or 'cpu'")
            #endif
        case .emulated:
            guard let path = getenv("PYDS4_EMULATOR") else {
                throw EngineError.backendUnavailable(
                    "backend 'emulated' is for tests: PYDS4_EMULATOR must name the library that scripts/msl builds")
            }
            return (GPUBackend(try HostDevice(library: String(cString: path)), isExact: isExact), 1)
        }
    }

    private func cpu() throws -> (backend: any Backend, threads: Int) {
        let backend = try CPUBackend(threads: threads)
        return (backend, backend.threads)
    }

    private func systemDevice() throws -> any GPUDevice {
        #if canImport(Metal)
        return try MetalDevice()
        #else
        return try CUDADevice()
        #endif
    }

    /// Products in f32 throughout: for comparing with references, not for speed.
    private var isExact: Bool { getenv("PYDS4_GPU_EXACT") != nil }
}
