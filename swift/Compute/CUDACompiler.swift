import GPUSources
import Synchronization
#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

/// The kernels as machine code for one NVIDIA architecture and the types of one model: in parts that are
/// compiled side by side, once, and then kept in files.
///
/// A file's name says all that went into it but the compiler's version: code of any is good for every driver
/// that loads it.
enum CUDACompiler {
    /// Kernels that take long to compile are alone.
    static let parts: [[GPUKernel]] = {
        let alone: [GPUKernel] = [.experts_down, .matvec_4, .experts_gate_up, .matvec_1, .matmul_tile, .matmul_experts,
                                  .matvec_int8_many, .matmul_wide]
        let others = GPUKernel.allCases.filter { !alone.contains($0) }
        let bundles = 4
        return alone.map { [$0] }
            + (0..<bundles).map { bundle in others.enumerated().filter { $0.offset % bundles == bundle }.map(\.element) }
    }()

    /// - Throws: `ComputeError.device` when there is neither a compiler nor anything it made before.
    static func check(architecture: String, cache: KernelCache? = .standard) throws {
        guard NVRTC() != nil || cache?.holdsAny(prefix: prefix(architecture)) == true else { throw missing }
    }

    private static let missing = ComputeError.device(
        "backend 'cuda': NVIDIA's run-time compiler was not found; `pip install nvidia-cuda-nvrtc`, or name "
            + "libnvrtc.so in PYDS4_NVRTC")

    private static func prefix(_ architecture: String) -> String {
        var hash = FNV()
        let source = gpu_source_cuda_text()!
        hash.add(UnsafeRawBufferPointer(start: source, count: strlen(source)))
        for option in NVRTC.options { option.utf8.withContiguousStorageIfAvailable { hash.add(UnsafeRawBufferPointer($0)) } }
        return "gpu-\(architecture)-\(String(hash.value, radix: 16))-"
    }

    /// The code of each of `parts`.
    ///
    /// - Parameters:
    ///   - architecture: "sm_90".
    ///   - types: Bits of QUANT_TYPES: the code of others is left out.
    ///   - isFresh: Compile, whatever was kept.
    /// - Throws: `ComputeError.device` when NVRTC is missing or refuses.
    static func modules(_ parts: [[GPUKernel]] = parts, architecture: String, types: UInt32, isFresh: Bool = false,
                        cache: KernelCache? = .standard) throws -> [[UInt8]] {
        let prefix = prefix(architecture)
        let names = parts.map { part in "\(prefix)\(String(types, radix: 16))-\(part[0].name).cubin" }
        let kept = names.map { isFresh ? nil : cache?.read($0) }
        let wanted = parts.indices.filter { kept[$0] == nil }
        if wanted.isEmpty { return kept.map { $0! } }
        guard let compiler = NVRTC() else { throw missing }
        let made = Parallel.map(wanted) { index in
            Result {
                let definitions = ["MSL_SOME", "QUANT_TYPES=\(types)u"] + parts[index].map { "MSL_WITH_\($0.name)" }
                let code = try compiler.compile(gpu_source_cuda_text(), architecture, definitions)
                cache?.write(code, names[index])
                return code
            }
        }
        var all = kept
        for (index, result) in zip(wanted, made) { all[index] = try result.get() }
        return all.map { $0! }
    }
}

/// Work on several threads, one a processor.
enum Parallel {
    private final class Job<Value: Sendable>: Sendable {
        let values: [Int]
        let body: @Sendable (Int) -> Value
        let next = Atomic(0)
        let done: Mutex<[Value?]>

        init(_ values: [Int], _ body: @escaping @Sendable (Int) -> Value) {
            self.values = values
            self.body = body
            done = Mutex(values.map { _ in nil })
        }

        func run() {
            while true {
                let slot = next.add(1, ordering: .relaxed).oldValue
                guard slot < values.count else { return }
                let value = body(values[slot])
                done.withLock { $0[slot] = value }
            }
        }
    }

    static func map<Value: Sendable>(_ values: [Int], _ body: @escaping @Sendable (Int) -> Value) -> [Value] {
        let job = Job(values, body)
        #if canImport(Glibc)
        // This thread is one of them.
        let helpers = (1..<max(1, min(values.count, sysconf(Int32(_SC_NPROCESSORS_ONLN)), 16))).compactMap { _ in start(job) }
        job.run()
        for thread in helpers { pthread_join(thread, nil) }
        #else
        job.run()
        #endif
        return job.done.withLock { $0.map { $0! } }
    }

    #if canImport(Glibc)
    private final class Closure: Sendable {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }

    private static func start<Value>(_ job: Job<Value>) -> pthread_t? {
        let context = Unmanaged.passRetained(Closure { job.run() })
        var thread = pthread_t()
        let failed = pthread_create(&thread, nil, { argument in
            Unmanaged<Closure>.fromOpaque(argument!).takeRetainedValue().body()
            return nil
        }, context.toOpaque())
        if failed != 0 {
            context.release()
            return nil
        }
        return thread
    }
    #endif
}
