import Compute
import KVStore
import Model
import Synchronization

/// Where the logits after a session's last token are.
private enum HeldLogits {
    case here([Float])
    /// In its buffer on the device.
    case there
}

/// One timeline: the tokens so far, their attention memory, and the logits after the last one.
public final class Session: @unchecked Sendable {  // guarded by the engine's lock; two atomics beside it
    public let engine: Engine
    public let context: Int
    var cache: KVCache
    private(set) var tokens: [Int32] = []
    private var heldLogits = HeldLogits.here([])
    /// Chosen by the backend in the last step, from these logits.
    public private(set) var chosenToken: Int32?
    private var deviceLogits: Buffer?
    private(set) var checkpoints = CheckpointList()
    /// Keys of the tokens, as far as they were needed.
    private var chain: KeyChain?
    /// Up to where this timeline is on disk, or on its way there.
    private var savedPosition = 0
    /// Of the prompt being evaluated, as `rewind` was told.
    var promptEnd = 0
    /// A step must stop here, for the checkpoint.
    var anchor: Int?
    var resumed = Resume()
    private let cancelled = Atomic(false)
    private let atomicPosition = Atomic(0)

    init(engine: Engine, context: Int, cache: KVCache) {
        self.engine = engine
        self.context = context
        self.cache = cache
    }

    deinit {
        // What it knows stays of use to the others, within their budget.
        if let checkpoint = checkpointForOthers() { engine.prefixes.insert(checkpoint) }
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
            twin.heldLogits = .here(logits)
            twin.checkpoints = checkpoints
            twin.chain = chain
            twin.savedPosition = savedPosition
            twin.promptEnd = promptEnd
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
        try check(prompt)
        let kept = try resume(prompt, mayEnd: true)
        if kept < prompt.count, let error = engine.step([Work(session: self, tokens: Array(prompt[kept...]))])[0] {
            throw error
        }
        return kept
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

    func keep(logits new: UnsafeBufferPointer<Float>) { (heldLogits, chosenToken) = (.here(Array(new)), nil) }

    /// The backend chose: the logits are copied to the CPU when somebody asks.
    func keep(token: Int32, logits new: Tensor) throws {
        let memory = engine.model.backend.memory
        let buffer = try deviceLogits ?? Buffer(byteCount: new.count * 4, in: memory, isCleared: false)
        memory.copy(from: new.floats, to: buffer.contents, byteCount: buffer.byteCount)
        (heldLogits, deviceLogits, chosenToken) = (.there, buffer, token)
    }

    /// The scores of the next token, or none.
    private(set) var logits: [Float] {
        get {
            guard case .there = heldLogits, let buffer = deviceLogits else {
                if case let .here(values) = heldLogits { return values }
                return []
            }
            let values = [Float](unsafeUninitializedCapacity: buffer.byteCount / 4) { values, count in
                buffer.read(into: values.baseAddress!, byteCount: buffer.byteCount)
                count = buffer.byteCount / 4
            }
            heldLogits = .here(values)
            return values
        }
        set { (heldLogits, chosenToken) = (.here(newValue), nil) }
    }

    /// How many of the next `count` tokens a step may take in at once.
    func stepLimit(_ count: Int) -> Int {
        guard let anchor, anchor > tokens.count else { return count }
        return min(count, anchor - tokens.count)
    }

    /// The step took these tokens in.
    func advance(by new: [Int32], isEnd: Bool) {
        let isAnchor = anchor == tokens.count + new.count
        if isAnchor { anchor = nil }
        let wasInPrompt = tokens.count < promptEnd
        tokens += new
        publishPosition()
        if !isEnd { logits = [] }
        let isPromptEnd = wasInPrompt ? tokens.count == promptEnd : isEnd && new.count > 1
        let isBoundary = tokens.count % (new.count == 1 ? KeyChain.blockTokens : Engine.chunkTokens) == 0
        guard isAnchor || isPromptEnd || isBoundary || (isEnd && new.count > 1) else { return }
        let checkpoint = keepCheckpoint(isAnchor: isAnchor)
        if isAnchor || isPromptEnd { keepOnDisk(checkpoint) }
    }

    private func publishPosition() { atomicPosition.store(tokens.count, ordering: .relaxed) }

    // MARK: Checkpoints

    private func keepCheckpoint(isAnchor: Bool) -> Checkpoint {
        let prefixes = engine.prefixes
        var keys = KeyChain(identity: .none)
        let isShared = prefixes.isEnabled
        if isShared { keys = extendedChain() }
        let new = Checkpoint(tokens: tokens, cache: cache.frozen(), logits: logits, chain: keys, isAnchor: isAnchor)
        new.savedPosition = savedPosition
        let gone = checkpoints.add(new)
        if isShared {
            gone.forEach(prefixes.forget)
            prefixes.insert(new)
        }
        return new
    }

    private func extendedChain() -> KeyChain {
        var keys = chain ?? KeyChain(identity: engine.prefixes.identity)
        keys.extend(to: tokens)
        chain = keys
        return keys
    }

    /// Where it stands, if others can make use of that.
    func checkpointForOthers() -> Checkpoint? {
        guard tokens.count >= Prefixes.fewestTokens, cache.position == tokens.count, engine.prefixes.isEnabled else { return nil }
        let new = Checkpoint(tokens: tokens, cache: cache.frozen(), logits: logits, chain: extendedChain(), isAnchor: false)
        new.savedPosition = savedPosition
        return new
    }

    func keepOnDisk(_ checkpoint: Checkpoint) {
        guard let disk = engine.prefixes.onDisk, checkpoint.position - savedPosition >= disk.fewestTokens,
              checkpoint.chain.identity == disk.store.identity else { return }
        savedPosition = checkpoint.position
        checkpoint.savedPosition = checkpoint.position
        disk.save(checkpoint)
    }

    /// Makes `kept` tokens of `prompt` all there is: those of `target`, or nothing, or what is there.
    ///
    /// - Parameter common: How many tokens the session shares with the prompt.
    func goTo(_ target: Checkpoint?, keeping kept: Int, of prompt: [Int32], common: Int) throws {
        guard target != nil || kept < tokens.count else { return }
        // Its end would be lost to the others.
        if common < tokens.count, let end = checkpointForOthers() { engine.prefixes.insert(end) }
        do {
            cache = try target?.cache ?? engine.model.emptyCache()
        } catch {
            throw EngineError(error)
        }
        checkpoints.removeAll(behind: min(common, kept))
        if let target, target.position > checkpoints.last?.position ?? 0 { _ = checkpoints.add(target) }
        tokens = target?.tokens ?? []
        logits = kept == prompt.count ? target?.logits ?? [] : []
        chain?.truncate(toTokens: min(common, kept))
        savedPosition = target?.savedPosition ?? 0
        publishPosition()
    }
}
