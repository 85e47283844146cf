import Compute
import GGUF
import Model

public struct EngineOptions: Sendable {
    /// Emulated: the GPU's kernels on the CPU, for tests.
    public enum BackendChoice: String, Sendable { case auto, cpu, metal, cuda, emulated }
    public var backend = BackendChoice.auto
    /// Of the CPU backend; nil for one a processor.
    public var threads: Int?
    /// The model's activation roundings, and rows of memory in its own formats.
    public var roundings = true

    public init() {}
}

/// An opened model. Computes one step at a time; steps of other threads wait.
public final class Engine: @unchecked Sendable {  // everything mutable is guarded by `lock`
    public let file: GGUFFile
    public let options: EngineOptions
    public let model: Transformer
    /// What its sessions remember together; off until it is given a budget or a disk.
    public let prefixes: Prefixes
    let lock = Lock()

    public var configuration: Configuration { model.configuration }
    public let threads: Int
    private let admission: Admission

    /// Prompts are evaluated in chunks that end at multiples of this many tokens; results do not
    /// depend on it. Larger chunks read experts less often, smaller ones answer a cancel sooner.
    static let chunkTokens = 512
    /// The same for this engine's backend: a multiple of it.
    var chunkTokens: Int { model.backend.chunkTokens }
    /// Tokens of all sessions in one forward pass.
    static let batchTokens = 2048

    /// Maps the file and checks every tensor; weights are not read.
    ///
    /// - Throws: `EngineError`.
    public init(path: String, options: EngineOptions = EngineOptions()) throws {
        do {
            if let threads = options.threads, !(1...1024).contains(threads) {
                throw EngineError.invalidArgument("threads: expected 1 to 1024, found \(threads)")
            }
            file = try GGUFFile(path: path)
            self.options = options
            let backend: any Backend
            admission = Admission(file, try Configuration(file), roundings: options.roundings)
            (backend, threads) = try options.makeBackend(admission)
            model = try Transformer(file, backend: backend, roundings: options.roundings)
            prefixes = Prefixes { [file, model] content in
                modelIdentity(file, model.configuration, model.formats, content: content)
            }
        } catch {
            throw EngineError(error)
        }
    }

    /// - Parameter context: Tokens the session may hold; nil for the model's own limit.
    public func session(context: Int? = nil) throws -> Session {
        let limit = configuration.contextLength
        if let context, !(1...limit).contains(context) {
            throw EngineError.invalidArgument("context: expected 1 to \(limit) tokens, found \(context)")
        }
        do {
            // Memory grows with use: only what is asked for must be there.
            if let context, let memory = model.backend.deviceMemory {
                try lock.withLock { try admission.check(session: context, memory) }
            }
            return Session(engine: self, context: context ?? limit, cache: try model.emptyCache())
        } catch {
            throw EngineError(error)
        }
    }
}
