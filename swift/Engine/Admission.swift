import Compute
import GGUF
import Model
#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

/// Refuses what does not fit the memory of a GPU, before anything is loaded or a session is begun: a driver
/// that runs out half-way would fail at a random place, or push other programs out.
///
/// The CPU's memory is judged by the caller, who knows what else the machine runs (pyds4/files/memory.py).
struct Admission {
    private let file: GGUFFile
    private let configuration: Configuration
    private let roundings: Bool
    private let isOff: Bool

    /// Tokens that a load must leave room for.
    static let loadTokens = 4096
    /// Copies between the CPU and the device, scores of an indexer, tables.
    private static let fixedByteCount = 384 << 20

    init(_ file: GGUFFile, _ configuration: Configuration, roundings: Bool) {
        (self.file, self.configuration, self.roundings) = (file, configuration, roundings)
        let guardSetting = getenv("PYDS4_MEMORY_GUARD").map { String(cString: $0).lowercased() } ?? ""
        isOff = ["off", "0", "no"].contains(guardSetting)
    }

    private func plan(_ tokens: Int, _ memory: DeviceMemory) -> MemoryPlan {
        MemoryPlan(file, configuration, tokens: tokens, roundings: roundings, chunkTokens: memory.chunkTokens)
    }

    /// The arena grows by doubling: it may hold twice of what a pass needs.
    private func buffers(_ memory: DeviceMemory) -> Int { 2 * plan(memory.chunkTokens, memory).buffers + Self.fixedByteCount }

    /// - Throws: `EngineError.memoryLimit` when the model does not fit, with figures.
    func check(load memory: DeviceMemory) throws {
        let tokens = min(configuration.contextLength, Self.loadTokens), plan = plan(tokens, memory)
        try check([("weights", plan.weights), ("attention memory of \(tokens) tokens", plan.kv),
                   ("buffers", buffers(memory))], "the model", memory)
    }

    /// - Throws: `EngineError.memoryLimit` when a session of `tokens` tokens would not fit what is left.
    func check(session tokens: Int, _ memory: DeviceMemory) throws {
        try check([("attention memory", plan(tokens, memory).kv),
                   ("buffers", max(0, buffers(memory) - memory.buffers))], "a context of \(tokens) tokens", memory)
    }

    private func check(_ parts: [(name: String, byteCount: Int)], _ what: String, _ memory: DeviceMemory) throws {
        let needed = parts.reduce(0) { $0 + $1.byteCount }
        guard !isOff, needed > memory.available else { return }
        let figures = parts.map { "\($0.name) \(mebibytes($0.byteCount))" }.joined(separator: ", ")
        throw EngineError.memoryLimit(
            "\(what) does not fit \(memory.name): \(figures): \(mebibytes(needed)) in all, and "
                + "\(mebibytes(memory.available)) are free. Take a smaller file or context, or set "
                + "PYDS4_MEMORY_GUARD=off to try anyway")
    }

    private func mebibytes(_ byteCount: Int) -> String { "\((byteCount + (1 << 20) - 1) >> 20) MiB" }
}
