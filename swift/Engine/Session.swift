import Compute
import Model
import Synchronization

/// One timeline: the tokens so far, their attention memory, and the logits after the last one.
public final class Session: @unchecked Sendable {  // guarded by the engine's lock; two atomics beside it
    public let engine: Engine
    public let context: Int
    var cache: KVCache
    private(set) var tokens: [Int32] = []
    private var logits: [Float] = []
    private var checkpoints: [Checkpoint] = []
    private let cancelled = Atomic(false)
    private let atomicPosition = Atomic(0)

    /// A place to go back to without evaluating anything.
    private struct Checkpoint {
        let position: Int
        let cache: KVCache
    }
    /// Each costs a few MB (see `KVCache`).
    private static let mostCheckpoints = 8

    init(engine: Engine, context: Int, cache: KVCache) {
        self.engine = engine
        self.context = context
        self.cache = cache
    }

    // MARK: What it holds

    /// Tokens taken in. Never waits.
    public var position: Int { atomicPosition.load(ordering: .relaxed) }
    public var allTokens: [Int32] { engine.lock.withLock { tokens } }
    public var byteCount: Int { engine.lock.withLock { cache.byteCount } }

    /// The scores of the next token, [vocabulary].
    public func withLogits<R>(_ body: (UnsafeBufferPointer<Float>) throws -> R) throws -> R {
        try engine.lock.withLock {
            guard !logits.isEmpty else { throw EngineError.noLogits }
            return try logits.withUnsafeBufferPointer(body)
        }
    }

    /// A second session with the same past, at no cost: see `KVCache`.
    public func fork() -> Session {
        engine.lock.withLock {
            let twin = Session(engine: engine, context: context, cache: cache.frozen())
            twin.tokens = tokens
            twin.logits = logits
            twin.checkpoints = checkpoints
            twin.publishPosition()
            return twin
        }
    }

    // MARK: Going on

    /// Brings the session to the end of `prompt` and returns how many tokens were not evaluated again.
    ///
    /// - Throws: `EngineError`: `.contextFull` and `.tokenOutOfRange` leave the session unchanged,
    ///   `.cancelled` at the end of the last finished chunk.
    public func prefill(_ prompt: [Int32]) throws -> Int {
        try engine.lock.withLock {
            if prompt == tokens, !logits.isEmpty { return prompt.count }
            try check(prompt)
            let kept = try lockedRewind(prompt)
            if let error = engine.lockedStep([Work(session: self, tokens: Array(prompt[kept...]))])[0] { throw error }
            return kept
        }
    }

    private func check(_ prompt: [Int32]) throws {
        let vocabulary = engine.configuration.vocabularySize
        guard !prompt.isEmpty else { throw EngineError.invalidArgument("an empty prompt has no next token") }
        guard prompt.count <= context else {
            throw EngineError.contextFull(needed: prompt.count, context: context)
        }
        if let index = prompt.firstIndex(where: { !(0..<Int32(vocabulary)).contains($0) }) {
            throw EngineError.tokenOutOfRange(token: prompt[index], index: index, vocabulary: vocabulary)
        }
    }

    /// Goes back to the longest prefix of `prompt` it can go on from, short of all of it.
    public func rewind(_ prompt: [Int32]) throws -> Int {
        try engine.lock.withLock { try lockedRewind(prompt) }
    }

    private func lockedRewind(_ prompt: [Int32]) throws -> Int {
        let most = max(prompt.count - 1, 0)
        var common = 0
        while common < min(tokens.count, most), tokens[common] == prompt[common] { common += 1 }
        if common == tokens.count { return common }
        do {
            checkpoints.removeAll { $0.position > common }
            if let checkpoint = checkpoints.last {
                cache = checkpoint.cache
                tokens.removeLast(tokens.count - checkpoint.position)
            } else {
                cache = try engine.model.emptyCache()
                tokens.removeAll()
            }
        } catch {
            throw EngineError(error)
        }
        logits.removeAll()
        publishPosition()
        return tokens.count
    }

    /// Stops what the session is doing, or the next thing it would do. Never waits.
    public func cancel() { cancelled.store(true, ordering: .releasing) }
    var isCancelled: Bool { cancelled.load(ordering: .acquiring) }
    func takeCancellation() -> Bool { cancelled.exchange(false, ordering: .acquiringAndReleasing) }

    // MARK: For the engine's step

    /// Hands the cache over, so that the step is its only owner and writes in place.
    func takeCache() -> KVCache {
        let taken = cache
        cache = .none
        return taken
    }

    func keep(logits new: UnsafeBufferPointer<Float>) { logits = Array(new) }

    /// The step took these tokens in.
    func advance(by new: [Int32], isEnd: Bool) {
        tokens += new
        publishPosition()
        let isBoundary = tokens.count % Engine.chunkTokens == 0
        if isBoundary || (isEnd && new.count > 1) { keepCheckpoint() }
        if !isEnd { logits.removeAll() }
    }

    private func publishPosition() { atomicPosition.store(tokens.count, ordering: .relaxed) }

    /// Keeps the ends of prompts and some boundaries, denser towards the end, where agents edit.
    private func keepCheckpoint() {
        checkpoints.append(Checkpoint(position: tokens.count, cache: cache.frozen()))
        guard checkpoints.count > Self.mostCheckpoints else { return }
        // The one whose loss costs least: a small gap, far behind the end.
        let cost = checkpoints.indices.dropLast().map { index in
            let before = index == 0 ? 0 : checkpoints[index - 1].position
            let gap = Double(checkpoints[index + 1].position - before)
            return gap / Double(tokens.count - checkpoints[index].position + Engine.chunkTokens)
        }
        checkpoints.remove(at: cost.indices.min { cost[$0] < cost[$1] }!)
    }
}
