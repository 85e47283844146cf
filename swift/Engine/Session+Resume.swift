import KVStore
import Model

/// How much of a prompt was there already, and why not more.
public struct Resume: Sendable {
    public enum Source: Int32, Sendable { case nothing = 0, session = 1, memory = 2, disk = 3 }
    /// Tokens that need not be evaluated.
    public var reused = 0
    /// Who had them.
    public var source = Source.nothing
    /// Tokens that some known timeline shares with the prompt; between `reused` and this no checkpoint was kept.
    public var known = 0
    /// The token that this timeline has at `known`, where the prompt has another; -1: it ends there,
    /// or only its keys are known.
    public var expected: Int32 = -1
    /// Read from disk.
    public var byteCount = 0

    public init() {}
}

extension Session {
    /// Goes back, or ahead, to the longest prefix of `prompt` that it can go on from: its own, another
    /// session's, or one on disk. Nothing is evaluated.
    ///
    /// - Parameter mayEnd: All of `prompt` may be kept, where the logits behind it are known.
    /// - Returns: Its length; without `mayEnd` short of all of `prompt`.
    public func rewind(_ prompt: [Int32], mayEnd: Bool = false) throws -> Int { try resume(prompt, mayEnd: mayEnd) }

    /// What the last `rewind` or `prefill` found.
    public var lastResume: Resume { engine.lock.withLock { resumed } }

    func resume(_ prompt: [Int32], mayEnd: Bool) throws -> Int {
        let prefixes = engine.prefixes, limit = max(prompt.count - 1, 0)
        let chain = prefixes.isEnabled ? KeyChain(identity: prefixes.identity, tokens: prompt) : nil
        // Only this thread changes the session meanwhile, so the disk is read without the engine's lock.
        let (own, common, mine) = engine.lock.withLock { () -> (Int, Int, Checkpoint?) in
            let common = commonPrefix(tokens, prompt)
            if mayEnd, common == tokens.count, common == prompt.count, !logits.isEmpty { return (common, common, nil) }
            if common == tokens.count, common <= limit { return (common, common, nil) }
            let checkpoint = checkpoints.furthest(at: min(common, limit))
            return (checkpoint?.position ?? 0, common, checkpoint)
        }
        var found = Resume()
        (found.reused, found.source) = (own, own > 0 ? .session : .nothing)
        (found.known, found.expected) = (common, engine.lock.withLock { common < tokens.count ? tokens[common] : -1 })
        var target = mine
        if let chain {
            let memory = prefixes.find(prompt, chain, limit: limit, end: mayEnd ? prompt.count : -1)
            if memory.known > found.known { (found.known, found.expected) = (memory.known, memory.next ?? -1) }
            if let best = memory.best, best.position > found.reused {
                (found.reused, found.source, target) = (best.position, .memory, best)
            }
            // Reading must gain more than it costs.
            let end = mayEnd ? prompt.count : -1
            if let disk = prefixes.onDisk, found.reused + Prefixes.fewestTokens <= max(limit, end) {
                let known = disk.store.find(prompt, chain, limit: limit, end: end).known
                if known > found.known { (found.known, found.expected) = (min(known, prompt.count), -1) }
                if let read = try loadFromDisk(disk, prompt, chain, from: found.reused + Prefixes.fewestTokens, limit: limit,
                                                end: end) {
                    (found.reused, found.source, target) = (read.checkpoint.position, .disk, read.checkpoint)
                    found.byteCount = read.byteCount
                    prefixes.insert(read.checkpoint)
                }
            }
            prefixes.count(use: found.source == .memory || found.source == .disk ? target : nil, gained: found.reused - own)
        }
        try engine.lock.withLock {
            try goTo(target, keeping: found.reused, of: prompt, common: common)
            resumed = found
            // The place where timelines part is worth a checkpoint: the next one will come by it too.
            let isGap = found.known - found.reused >= Prefixes.fewestTokens * 2 && found.known < limit
            anchor = chain != nil && isGap ? found.known : nil
            promptEnd = prompt.count
        }
        return found.reused
    }

    private func loadFromDisk(_ disk: DiskPrefixes, _ prompt: [Int32], _ chain: KeyChain, from: Int, limit: Int,
                              end: Int) throws -> (checkpoint: Checkpoint, byteCount: Int)? {
        do {
            let read = try disk.load(prompt, chain, from: from, limit: limit, end: end) { try engine.model.emptyCache() }
            return read.map { read in
                var own = chain
                own.truncate(toTokens: read.position)
                let checkpoint = Checkpoint(tokens: Array(prompt[..<read.position]), cache: read.cache, logits: read.logits,
                                            chain: own, isAnchor: false)
                checkpoint.savedPosition = read.position
                return (checkpoint, read.byteCount)
            }
        } catch {
            throw EngineError(error)
        }
    }

    /// Keeps where the session stands for the others, and on disk if there is one: call at the end of a
    /// turn, when its last token was taken in.
    public func save() {
        engine.lock.withLock {
            guard let checkpoint = checkpointForOthers() else { return }
            engine.prefixes.insert(checkpoint)
            keepOnDisk(checkpoint)
        }
    }
}
