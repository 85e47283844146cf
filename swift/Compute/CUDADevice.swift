import GPUSources
#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

/// An NVIDIA GPU, through its driver. Lists of commands that come again become graphs.
public final class CUDADevice: GPUDevice {
    public let name = "cuda"
    public let model: String
    public let isUnified = false

    private let driver: CUDADriver
    private let context: CUDADriver.Handle
    private let stream: CUDADriver.Handle
    /// "sm_90".
    private let architecture: String
    private var modules: [CUDADriver.Handle] = []
    /// Of `GPUKernel`s, by their raw values.
    private var functions: [CUDADriver.Handle] = []
    /// Memory that copies to and from without an extra copy.
    private let staging: UnsafeMutableRawPointer
    private static let stagingByteCount = 16 << 20

    private struct Graph {
        let words: [UInt64]
        let executable: CUDADriver.Handle
        var lastUse: Int
    }
    private var graphs: [UInt64: Graph] = [:]
    /// Of lists that were run once; the second time makes a graph.
    private var seen: Set<UInt64> = []
    private var uses = 0
    private var usesGraphs = getenv("PYDS4_CUDA_NO_GRAPHS") == nil && getenv("PYDS4_CUDA_PROFILE") == nil
    /// A token is several lists, and every number of sessions has its own.
    private static let mostGraphs = 128
    /// Kernels of a graph are launched while the one before still runs, and wait in it (`MSL_ENTER`): hides the
    /// launch. Not measured yet, hence asked for; from compute capability 9.0 on.
    private let launchesEarly: Bool
    /// Shorter lists are not worth one.
    private static let leastGraphCommands = 8
    private var profile: CUDAProfile?

    /// - Throws: `ComputeError.device`: no driver, no GPU, one too old, or no compiler for it.
    public init() throws {
        let driver = try CUDADriver()
        self.driver = driver
        var device: Int32 = 0
        try driver.check(driver.initialise(0), "no NVIDIA GPU can be used")
        try driver.check(driver.deviceGet(&device, 0), "no NVIDIA GPU was found")
        var text = [CChar](repeating: 0, count: 128)
        _ = driver.deviceName(&text, 128, device)
        model = String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        var major: Int32 = 0, minor: Int32 = 0
        _ = driver.deviceAttribute(&major, 75, device)
        _ = driver.deviceAttribute(&minor, 76, device)
        guard major >= 8 else {
            throw ComputeError.device("backend 'cuda': \(model) has compute capability \(major).\(minor); 8.0 is needed")
        }
        var context: CUDADriver.Handle = nil, stream: CUDADriver.Handle = nil
        try driver.check(driver.contextRetain(&context, device), "opening \(model)")
        try driver.check(driver.contextSet(context), "using \(model)")
        try driver.check(driver.streamCreate(&stream, 1), "making a stream")
        // Hopper's matrix instructions are for this very architecture.
        architecture = major == 9 && minor == 0 ? "sm_90a" : "sm_\(major)\(minor)"
        launchesEarly = getenv("PYDS4_CUDA_EARLY_LAUNCH") != nil && major >= 9 && driver.graphAddEdges != nil
        try CUDACompiler.check(architecture: architecture)
        var staging: UnsafeMutableRawPointer?
        try driver.check(driver.allocateHost(&staging, Self.stagingByteCount, 0), "allocating pinned memory")
        self.staging = staging!
        self.context = context
        self.stream = stream
        if getenv("PYDS4_CUDA_PROFILE") != nil { profile = CUDAProfile(driver) }
    }

    deinit {
        profile?.report()
        _ = driver.contextSet(context)
        _ = driver.streamWait(stream)
        for graph in graphs.values { _ = driver.graphExecDestroy(graph.executable) }
        _ = driver.freeHost(staging)
        for module in modules { _ = driver.moduleUnload(module) }
        _ = driver.streamDestroy(stream)
    }

    public func prepare(types: Set<UInt32>) throws {
        enter()
        let bits = types.reduce(UInt32(0)) { $0 | 1 << gpu_type_bit($1) }
        func load(isFresh: Bool) throws -> CUDADriver.Status {
            for code in try CUDACompiler.modules(architecture: architecture, types: bits, isFresh: isFresh) {
                var module: CUDADriver.Handle = nil
                let status = code.withUnsafeBytes { driver.moduleLoad(&module, $0.baseAddress!) }
                guard status == 0 else { return status }
                modules.append(module)
            }
            return 0
        }
        // Code that was kept may be of a compiler that this driver is too old for.
        if try load(isFresh: false) != 0 {
            for module in modules { _ = driver.moduleUnload(module) }
            modules = []
            try driver.check(try load(isFresh: true), "loading the kernels")
        }
        functions = try GPUKernel.allCases.map { kernel in
            let part = CUDACompiler.parts.firstIndex { $0.contains(kernel) }!
            var function: CUDADriver.Handle = nil
            try driver.check(driver.moduleFunction(&function, modules[part], "msl_" + kernel.name), "kernel \(kernel.name)")
            if kernel.sharedByteCount > 0 {
                let most: Int32 = 8  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                try driver.check(driver.functionAttribute(function, most, Int32(kernel.sharedByteCount)),
                                 "kernel \(kernel.name)")
            }
            return function
        }
    }

    /// The context belongs to a thread, and callers may be any thread.
    private func enter() { _ = driver.contextSet(context) }

    public var availableByteCount: Int {
        enter()
        var free = 0, total = 0
        return driver.memoryInfo(&free, &total) == 0 ? free : 0
    }

    public func allocate(byteCount: Int) throws -> UnsafeMutableRawPointer {
        enter()
        var address: CUDADriver.Address = 0
        guard driver.allocate(&address, max(byteCount, 1)) == 0, let pointer = UnsafeMutableRawPointer(bitPattern: UInt(address))
        else { throw ComputeError.outOfMemory(byteCount: byteCount) }
        return pointer
    }

    public func free(_ address: UnsafeMutableRawPointer) {
        enter()
        _ = driver.free(CUDADriver.Address(UInt(bitPattern: address)))
    }

    public func adopt(_ address: UnsafeRawPointer, byteCount: Int) { preconditionFailure("memory is not unified") }
    public func kernelAddress(_ address: UnsafeRawPointer) -> UInt64 { UInt64(UInt(bitPattern: address)) }

    // MARK: Commands

    public func run(_ commands: GPUCommands) throws {
        enter()
        guard usesGraphs, commands.isKernelsOnly, commands.count >= Self.leastGraphCommands else {
            return try encode(commands)
        }
        uses += 1
        if var graph = graphs[commands.hash], graph.words == commands.words {
            graph.lastUse = uses
            graphs[commands.hash] = graph
            return try driver.check(driver.graphLaunch(graph.executable, stream), "replaying a graph")
        }
        guard seen.remove(commands.hash) != nil else {
            if seen.count > 1024 { seen.removeAll() }
            seen.insert(commands.hash)
            return try encode(commands)
        }
        do {
            try keepGraph(commands)
        } catch {
            // No room for another: what there is goes on, and so does everything else without.
            usesGraphs = false
            return try encode(commands)
        }
        try driver.check(driver.graphLaunch(graphs[commands.hash]!.executable, stream), "replaying a graph")
    }

    private func keepGraph(_ commands: GPUCommands) throws {
        if graphs.count >= Self.mostGraphs, let oldest = graphs.min(by: { $0.value.lastUse < $1.value.lastUse }) {
            _ = driver.graphExecDestroy(oldest.value.executable)
            graphs[oldest.key] = nil
        }
        var graph: CUDADriver.Handle = nil, executable: CUDADriver.Handle = nil
        try driver.check(driver.graphCreate(&graph, 0), "making a graph")
        defer { _ = driver.graphDestroy(graph) }
        try addNodes(commands, to: graph)
        try driver.check(driver.graphInstantiate(&executable, graph, 0), "making a graph")
        if let old = graphs[commands.hash] { _ = driver.graphExecDestroy(old.executable) }
        graphs[commands.hash] = Graph(words: commands.words, executable: executable, lastUse: uses)
    }

    /// Kernels that overlap wait for the same ones before them.
    private func addNodes(_ commands: GPUCommands, to graph: CUDADriver.Handle) throws {
        var before: [CUDADriver.Handle] = [], group: [CUDADriver.Handle] = []
        try commands.forEach { command in
            guard case let .dispatch(kernel, grid, buffers, arguments, overlaps) = command else {
                preconditionFailure("graphs hold kernels only")
            }
            if !overlaps {
                before = group
                group = []
            }
            // The edges of several kernels before this one are ordinary ones.
            let isEarly = launchesEarly && before.count == 1
            let waitsFor = isEarly ? [] : before
            var parameters = parameters(buffers, arguments)
            var node: CUDADriver.Handle = nil
            let status = parameters.withUnsafeMutableBufferPointer { parameters in
                var description = CUDADriver.KernelNode(
                    function: functions[kernel.rawValue], gridX: UInt32(grid.0), gridY: UInt32(grid.1),
                    gridZ: UInt32(grid.2), blockX: UInt32(kernel.threads),
                    sharedByteCount: UInt32(kernel.sharedByteCount), parameters: parameters.baseAddress)
                return waitsFor.withUnsafeBufferPointer {
                    driver.graphAddKernel(&node, graph, $0.baseAddress, $0.count, &description)
                }
            }
            try driver.check(status, "adding kernel \(kernel.name) to a graph")
            if isEarly {
                var edge = CUDADriver.GraphEdge()
                try driver.check(driver.graphAddEdges!(graph, before, [node], &edge, 1), "adding an edge to a graph")
            }
            group.append(node)
        }
    }

    private func parameters(_ buffers: UnsafeBufferPointer<UInt64>,
                            _ arguments: UnsafeRawBufferPointer) -> [UnsafeMutableRawPointer?] {
        buffers.indices.map { UnsafeMutableRawPointer(mutating: buffers.baseAddress! + $0) }
            + [UnsafeMutableRawPointer(mutating: arguments.baseAddress)]
    }

    private func encode(_ commands: GPUCommands) throws {
        try commands.forEach { command in
            switch command {
            case let .dispatch(kernel, grid, buffers, arguments, _):
                try start(kernel, grid, parameters(buffers, arguments))
            case let .copy(source, target, byteCount):
                try driver.check(driver.copyOnDevice(UInt64(target), UInt64(source), byteCount, stream), "copying")
            case let .clear(target, byteCount):
                try driver.check(driver.fill(UInt64(target), 0, byteCount, stream), "clearing")
            }
        }
    }

    private func start(_ kernel: GPUKernel, _ grid: (Int, Int, Int), _ parameters: [UnsafeMutableRawPointer?]) throws {
        var parameters = parameters
        try profile?.begin(stream)
        try driver.check(
            driver.launch(functions[kernel.rawValue], UInt32(grid.0), UInt32(grid.1), UInt32(grid.2),
                          UInt32(kernel.threads), 1, 1, UInt32(kernel.sharedByteCount), stream, &parameters, nil),
            "starting kernel \(kernel.name)")
        try profile?.end(kernel, stream)
    }

    public func write(_ host: UnsafeRawPointer, to target: UnsafeMutableRawPointer, byteCount: Int) throws {
        enter()
        // From pageable memory the driver has copied when it returns.
        try driver.check(driver.copyToDevice(UInt64(UInt(bitPattern: target)), host, byteCount, stream),
                         "copying \(byteCount) bytes to the GPU")
    }

    public func read(_ source: UnsafeRawPointer, into host: UnsafeMutableRawPointer, byteCount: Int) throws {
        enter()
        for offset in stride(from: 0, to: byteCount, by: Self.stagingByteCount) {
            let part = min(Self.stagingByteCount, byteCount - offset)
            try driver.check(driver.copyToHost(staging, UInt64(UInt(bitPattern: source + offset)), part, stream),
                             "copying \(byteCount) bytes from the GPU")
            try driver.check(driver.streamWait(stream), "computing")
            (host + offset).copyMemory(from: staging, byteCount: part)
        }
        profile?.collect()
    }

    public func wait() throws {
        enter()
        try driver.check(driver.streamWait(stream), "computing")
        profile?.collect()
    }
}
