import Compute
#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

extension EngineOptions {
    /// The backend that the options name; "auto" takes a GPU that is there and can hold the model, else the CPU.
    ///
    /// - Throws: `EngineError.backendUnavailable`, saying what is missing; `.memoryLimit` when the model does not
    ///   fit the GPU that was asked for.
    func makeBackend(_ admission: Admission) throws -> (backend: any Backend, threads: Int) {
        func gpu(_ device: any GPUDevice) throws -> (backend: any Backend, threads: Int) {
            let backend = GPUBackend(device, isExact: isExact)
            try admission.check(load: backend.deviceMemory!)
            return (backend, 1)
        }
        switch backend {
        case .cpu:
            return try cpu()
        case .auto:
            guard let device = try? systemDevice(), let found = try? gpu(device) else { return try cpu() }
            return found
        case .cuda:
            return try gpu(try CUDADevice())
        case .metal:
            #if canImport(Metal)
            return try gpu(try MetalDevice())
            #else
            throw EngineError.backendUnavailable("backend 'metal' exists on macOS only; use 'cuda' or 'cpu'")
            #endif
        case .emulated:
            guard let path = getenv("PYDS4_EMULATOR") else {
                throw EngineError.backendUnavailable(
                    "backend 'emulated' is for tests: PYDS4_EMULATOR must name the library that scripts/msl builds")
            }
            return try gpu(try HostDevice(library: String(cString: path)))
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
