import KVStore
import Model

/// What all sessions of an engine remember together: prefixes in memory within a budget, and below
/// them, when one is attached, a store on disk.
public final class Prefixes: @unchecked Sendable {  // guarded by `lock`
    private let lock = Lock()
    private let identify: (_ content: String?) -> ChunkKey
    private var content: String?
    private var identityOnce: ChunkKey?
    private var budget = 0
    private var disk: DiskPrefixes?
    private var byParent: [ChunkKey: [Checkpoint]] = [:]
    private var entries: [ObjectIdentifier: Checkpoint] = [:]
    /// Parts of caches: what checkpoints share is counted once.
    private var parts: [ObjectIdentifier: (byteCount: Int, owners: Int)] = [:]
    private var byteCount = 0
    private var uses: UInt64 = 0
    private var counters = Counters()

    /// Less than this is not worth a checkpoint of its own.
    static let fewestTokens = 32

    private struct Counters { var hits = 0, misses = 0, evicted = 0, reused = 0 }

    public struct Statistics: Sendable {
        public let budgetBytes: Int
        public let byteCount: Int
        public let entryCount: Int
        public let hits: Int
        public let misses: Int
        public let evicted: Int
        /// Tokens not evaluated again thanks to other sessions' work.
        public let reusedTokens: Int
    }

    init(identify: @escaping (_ content: String?) -> ChunkKey) { self.identify = identify }

    /// Bytes that prefixes may take in memory; 0 keeps none. What they share with each other counts
    /// once, what they share with open sessions counts too.
    public var budgetBytes: Int {
        get { lock.withLock { budget } }
        set {
            lock.withLock {
                budget = max(0, newValue)
                makeRoom()
            }
        }
    }

    public var diskStore: DiskStore? { lock.withLock { disk?.store } }
    var onDisk: DiskPrefixes? { lock.withLock { disk } }
    var isEnabled: Bool { lock.withLock { budget > 0 || disk != nil } }

    /// Of the model, its formats and its layout; hashed once.
    public var identity: ChunkKey {
        lock.withLock {
            if let identityOnce { return identityOnce }
            let identity = identify(content)
            identityOnce = identity
            return identity
        }
    }

    /// Names the content of the model's files, which is sampled otherwise.
    ///
    /// - Throws: `EngineError.invalidArgument` when something was kept under another name.
    public func bind(_ content: String) throws {
        try lock.withLock {
            guard identityOnce == nil || self.content == content else {
                throw EngineError.invalidArgument("the model's identity is in use already: bind it before anything is kept")
            }
            self.content = content
        }
    }

    func attach(_ new: DiskPrefixes?) {
        let old = lock.withLock {
            defer { disk = new }
            return disk
        }
        old?.close()
    }

    public func statistics() -> Statistics {
        lock.withLock {
            Statistics(budgetBytes: budget, byteCount: byteCount, entryCount: entries.count, hits: counters.hits,
                       misses: counters.misses, evicted: counters.evicted, reusedTokens: counters.reused)
        }
    }

    // MARK: Checkpoints

    func insert(_ new: Checkpoint) {
        lock.withLock {
            guard budget > 0, new.position >= Self.fewestTokens else { return }
            uses += 1
            new.lastUsed = uses
            let parent = parentKey(new)
            // The same place again: the newer one shares more with what is in use.
            if let old = byParent[parent]?.first(where: { $0.position == new.position && isSame($0, new) }) {
                if old === new || (new.logits.isEmpty && !old.logits.isEmpty) {
                    old.lastUsed = uses
                    return
                }
                remove(old)
            }
            byParent[parent, default: []].append(new)
            entries[ObjectIdentifier(new)] = new
            eachPart(of: new) { part, size in
                if parts[part] == nil { byteCount += size }
                parts[part, default: (size, 0)].owners += 1
            }
            makeRoom()
        }
    }

    /// A session gave it up.
    func forget(_ old: Checkpoint) {
        lock.withLock { if !old.isAnchor { remove(old) } }
    }

    public func removeAll() {
        lock.withLock { for entry in Array(entries.values) { remove(entry) } }
    }

    /// The longest known prefix of a prompt, at most `limit` tokens (`end` where its logits are known);
    /// and what timeline shares most with it.
    func find(_ prompt: [Int32], _ chain: KeyChain, limit: Int, end: Int) -> (best: Checkpoint?, known: Int, next: Int32?) {
        lock.withLock {
            var best: Checkpoint?
            for block in stride(from: chain.keys.count, through: 0, by: -1) where best == nil {
                best = byParent[chain[block]]?.filter {
                    ($0.position <= limit || ($0.position == end && !$0.logits.isEmpty))
                        && commonPrefix($0.tokens, prompt, from: block * KeyChain.blockTokens) == $0.position
                }.max { $0.position < $1.position }
            }
            var known = best?.position ?? 0, next: Int32?
            for entry in entries.values {
                let common = entry.common(with: prompt, chain)
                guard common >= known else { continue }
                if common > known { (known, next) = (common, nil) }
                if entry.position > common { next = entry.tokens[common] }
            }
            return (best, known, next)
        }
    }

    /// A session goes on from an entry, or none was of use.
    func count(use entry: Checkpoint?, gained: Int) {
        lock.withLock {
            if let entry {
                uses += 1
                entry.lastUsed = uses
                counters.hits += 1
                counters.reused += gained
            } else {
                counters.misses += 1
            }
        }
    }

    private func parentKey(_ entry: Checkpoint) -> ChunkKey { entry.chain[entry.position / KeyChain.blockTokens] }

    private func isSame(_ a: Checkpoint, _ b: Checkpoint) -> Bool {
        commonPrefix(a.tokens, b.tokens, from: a.position / KeyChain.blockTokens * KeyChain.blockTokens) == a.position
    }

    private func eachPart(of entry: Checkpoint, _ body: (ObjectIdentifier, Int) -> Void) {
        entry.cache.forEachPart(body)
        body(ObjectIdentifier(entry), entry.tokens.count * 4 + entry.logits.count * 4)
    }

    private func remove(_ entry: Checkpoint) {
        guard entries.removeValue(forKey: ObjectIdentifier(entry)) != nil else { return }
        let parent = parentKey(entry)
        byParent[parent]?.removeAll { $0 === entry }
        if byParent[parent]?.isEmpty == true { byParent[parent] = nil }
        eachPart(of: entry) { part, size in
            parts[part]!.owners -= 1
            if parts[part]!.owners == 0 {
                parts[part] = nil
                byteCount -= size
            }
        }
    }

    /// Gives up what was unused for longest, anchors last.
    private func makeRoom() {
        guard byteCount > budget else { return }
        for entry in entries.values.sorted(by: { ($0.isAnchor ? 1 : 0, $0.lastUsed) < ($1.isAnchor ? 1 : 0, $1.lastUsed) }) {
            guard byteCount > budget else { return }
            remove(entry)
            counters.evicted += 1
        }
    }
}

/// The disk below: what is worth writing, a thread that writes it, and reading it back.
final class DiskPrefixes: @unchecked Sendable {  // constants and things that guard themselves
    let store: DiskStore
    let fewestTokens: Int
    private let queue = WriteQueue(limit: 8)
    private let given = Lock()
    private var givenUp = 0

    init(store: DiskStore, fewestTokens: Int) {
        self.store = store
        self.fewestTokens = fewestTokens
    }

    /// Saves given up because the disk did not keep pace.
    var givenUpCount: Int { given.withLock { givenUp } }
    var waiting: Int { queue.waiting }

    func save(_ checkpoint: Checkpoint) {
        let store = store
        let old = queue.add {
            _ = store.save(checkpoint.tokens, checkpoint.chain, isAnchor: checkpoint.isAnchor, CacheSource(cache: checkpoint.cache, logits: checkpoint.logits))
        }
        given.withLock { givenUp += old }
    }

    func flush() { queue.flush() }
    func close() { queue.close() }

    /// Reads the longest stored prefix of a prompt that is at least `from` tokens long.
    func load(_ prompt: [Int32], _ chain: KeyChain, from: Int, limit: Int, end: Int, into empty: () throws -> KVCache)
        throws -> (cache: KVCache, logits: [Float], position: Int, byteCount: Int)? {
        // A file that turns out damaged or gone is out of the index; then the next best is tried.
        for _ in 0..<64 {
            guard let match = store.find(prompt, chain, limit: limit, end: end).match, match.position >= from else { break }
            var sink = CacheSink(cache: try empty())
            if try store.load(match, into: &sink), sink.isWhole {
                return (sink.cache, sink.logits, match.position, match.byteCount)
            }
        }
        store.countMiss()
        return nil
    }
}

/// A checkpoint's payloads. A state is the number of its logits (u32), the logits, and the cache's state.
private struct CacheSource: PayloadSource {
    let cache: KVCache
    let logits: [Float]

    func writeBlocks(first: Int, count: Int, to out: UnsafeMutableRawPointer, stride: Int) {
        cache.readBlocks(first: first, count: count, into: out, stride: stride)
    }
    var answersEnd: Bool { !logits.isEmpty }
    var stateByteCount: Int { 4 + logits.count * 4 + cache.stateByteCount }
    func writeState(to out: UnsafeMutableRawBufferPointer) {
        out.storeBytes(of: UInt32(logits.count).littleEndian, as: UInt32.self)
        logits.withUnsafeBytes { UnsafeMutableRawBufferPointer(rebasing: out[4...]).copyMemory(from: $0) }
        cache.readState(into: out.baseAddress! + 4 + logits.count * 4)
    }
}

private struct CacheSink: PayloadSink {
    var cache: KVCache
    var logits: [Float] = []
    var isWhole = false

    mutating func takeBlocks(first: Int, count: Int, _ bytes: UnsafeRawPointer, stride: Int) throws {
        try cache.appendBlocks(count: count, from: bytes, stride: stride)
    }
    mutating func takeState(_ bytes: UnsafeRawBufferPointer, position: Int) throws {
        guard bytes.count >= 4 else { return }
        let start = 4 + 4 * Int(UInt32(littleEndian: bytes.loadUnaligned(as: UInt32.self)))
        guard start <= bytes.count else { return }
        logits = stride(from: 4, to: start, by: 4).map { bytes.loadUnaligned(fromByteOffset: $0, as: Float.self) }
        isWhole = try cache.restoreState(UnsafeRawBufferPointer(rebasing: bytes[start...]), position: position)
    }
}

extension Engine {
    /// Keeps prefixes in `directory` from now on, and uses those that are there; nil: no more.
    ///
    /// - Parameter fewestTokens: Fewer new tokens than this behind the last save are not written.
    /// - Throws: `EngineError`.
    public func attachDisk(_ directory: String?, options: StoreOptions = StoreOptions(), fewestTokens: Int = 256) throws {
        guard let directory else { return prefixes.attach(nil) }
        guard KVCache.hasWholeBlocks(configuration) else {
            throw EngineError.invalidArgument("this model's compression ratios do not divide \(KVCache.blockTokens) tokens")
        }
        do {
            let store = try DiskStore(directory: directory, identity: prefixes.identity,
                                      blockByteCount: try model.emptyCache().blockByteCount, options: options)
            prefixes.attach(DiskPrefixes(store: store, fewestTokens: max(fewestTokens, 1)))
        } catch {
            throw EngineError(error)
        }
    }

    /// Waits until everything that is to be kept on disk is there.
    public func flushDisk() { prefixes.onDisk?.flush() }
    /// Saves under way or waiting, and those given up because the disk did not keep pace.
    public var diskQueue: (waiting: Int, givenUp: Int) {
        prefixes.onDisk.map { ($0.waiting, $0.givenUpCount) } ?? (0, 0)
    }
}
