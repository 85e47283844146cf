#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

public struct StoreOptions: Sendable {
    /// Bytes the whole directory may take, all models together.
    public var budgetBytes = 64 << 30
    /// Bytes that may be written in 24 hours; 0: no limit. Spares SSDs.
    public var writeBudgetBytes = 0
    /// Bytes of the file system that are left to others.
    public var reserveBytes = 1 << 30

    public init() {}
}

/// Prefixes of one model on disk: knows bytes and token ids, not layers.
///
/// A directory holds one folder a model (`v1-<identity>`), and any number of processes may use it at
/// once: chunks are named by what they hold, appear whole (written aside, synced, renamed) and never
/// change. What is damaged, cut or not what its name says is removed when it is met. Losing any file
/// at any time costs time, never correctness.
public final class DiskStore: @unchecked Sendable {  // guarded by `lock`
    public let directory: String
    public let identity: ChunkKey
    public let options: StoreOptions
    /// Of one block's payload; nil: whatever the files say (for looking after a directory only).
    let blockByteCount: Int?
    let folder: String
    let lock = StoreLock()
    var index = StoreIndex()
    var counters = StoreCounters()
    /// The clock of `StoredFile.lastUsed`.
    private var lastTick: Int64 = 0
    private var scannedAt: Int64 = .min

    static let folderPrefix = "v1-"
    static let temporaryPrefix = ".tmp-"

    /// Opens, and makes when missing, the folder of `identity`. A directory that cannot be written can
    /// still be read.
    ///
    /// - Throws: `StoreError` when the directory can be neither made nor read.
    public init(directory: String, identity: ChunkKey, blockByteCount: Int?, options: StoreOptions) throws {
        self.directory = directory
        self.identity = identity
        self.blockByteCount = blockByteCount
        self.options = options
        folder = directory + "/" + Self.folderPrefix + "\(identity)"
        do {
            try Files.makeDirectory(directory)
            try Files.makeDirectory(folder)
        } catch {
            // Another user's or a read-only directory may still hold what this model needs.
            guard Files.info(directory)?.isDirectory == true else { throw error }
        }
        lock.withLock {
            removeLeftovers()
            scan()
            for orphan in index.orphans(identity: identity) { _ = drop(orphan) }
        }
    }

    /// The stores of all models in a directory, to look after.
    ///
    /// - Throws: `StoreError` when there is no such directory.
    public static func all(in directory: String, options: StoreOptions) throws -> [DiskStore] {
        guard Files.info(directory)?.isDirectory == true else { throw StoreError("open", directory, code: ENOENT) }
        return try Files.names(in: directory).sorted().compactMap { name in
            guard name.hasPrefix(folderPrefix), let identity = ChunkKey(hex: name.dropFirst(folderPrefix.count)) else { return nil }
            return try DiskStore(directory: directory, identity: identity, blockByteCount: nil, options: options)
        }
    }

    static func name(_ key: ChunkKey, _ kind: ChunkHeader.Kind) -> String { "\(key)" + (kind == .rows ? ".rows" : ".state") }
    func path(_ file: StoredFile) -> String { folder + "/" + file.name }
    private func pinPath(_ key: ChunkKey) -> String { folder + "/\(key).pin" }

    // MARK: What is there

    /// Temporary files whose writer is gone. A living writer holds a lock on its own.
    private func removeLeftovers() {
        for name in Files.names(in: folder) where name.hasPrefix(Self.temporaryPrefix) {
            let path = folder + "/" + name
            if let file = try? OpenFile(reading: path), file.tryLock() {
                if Files.remove(path) { counters.leftoversRemoved += 1 }
            }
        }
    }

    /// Looks for files that other processes added or removed, if the folder changed.
    func refresh() {
        guard let changed = Files.info(folder)?.changed else { return }
        if changed != scannedAt { scan() }
    }

    private func scan() {
        // Another change within the same tick of the file system's clock would not show: such a scan
        // does not count.
        let changed = Files.info(folder)?.changed ?? .min
        scannedAt = abs(Files.nowNanoseconds() - changed) > 50_000_000 ? changed : .min
        var present: Set<String> = [], pins: Set<String> = []
        for name in Files.names(in: folder) {
            if name.hasSuffix(".pin") { pins.insert(String(name.dropLast(4))) }
            guard name.hasSuffix(".rows") || name.hasSuffix(".state") else { continue }
            present.insert(name)
            if index.files[name] == nil { admit(name) }
        }
        for (name, file) in index.files where !present.contains(name) { index.remove(file) }
        for file in index.files.values where file.isState { file.isPinned = pins.contains("\(file.key)") }
    }

    /// Takes a file into the index if it is what its name says; removes it if it is not.
    private func admit(_ name: String) {
        let kind: ChunkHeader.Kind = name.hasSuffix(".rows") ? .rows : .state, path = folder + "/" + name
        guard let key = ChunkKey(hex: name.prefix { $0 != "." }), let info = Files.info(path) else { return }
        do {
            let head = try ChunkHead(OpenFile(reading: path), identity: identity, named: key, kind: kind)
            guard let head, kind == .state || blockByteCount == nil || head.header.payloadByteCount == blockByteCount else {
                if Files.remove(path) { counters.damagedRemoved += 1 }
                return
            }
            lastTick = max(lastTick, info.changed)
            index.insert(StoredFile(head.header, name: name, keys: head.keys,
                                    tail: kind == .state ? head.tokens : [], lastUsed: info.changed))
        } catch {
            // Gone meanwhile, or unreadable: it says nothing about the bytes.
        }
    }

    /// Later than any use before, whatever the clock says.
    private func tick() -> Int64 {
        lastTick = max(lastTick + 1_000, Files.nowNanoseconds())
        return lastTick
    }

    /// Marks a state and what it stands on as just used; ancestors later than what stands on them.
    func touch(_ state: StoredFile?, rows key: ChunkKey) {
        for file in (state.map { [$0] } ?? []) + index.rows(from: key) {
            file.lastUsed = tick()
            Files.touch(path(file), file.lastUsed)
        }
    }

    /// Removes a file, its pin included; false when the system refused. What another process removed
    /// already counts as removed.
    func drop(_ file: StoredFile) -> Bool {
        index.remove(file)
        let gone = Files.remove(path(file))
        if file.isPinned { Files.remove(pinPath(file.key)) }
        return gone
    }

    // MARK: Looking after it

    public struct Entry: Sendable {
        public let identity: ChunkKey
        public let key: ChunkKey
        /// Tokens one would not compute again.
        public let position: Int
        /// Of the state alone, and of all it stands on.
        public let byteCount: Int
        public let chainByteCount: Int
        /// Seconds since 1970; the clock may have been wrong.
        public let madeSeconds: UInt64
        public let usedSeconds: UInt64
        public let isPinned: Bool
        public let isAnchor: Bool
    }

    /// Every place one could go on from, latest use first.
    public func entries() -> [Entry] {
        lock.withLock {
            refresh()
            return index.states.sorted { $0.lastUsed > $1.lastUsed }.map { state in
                Entry(identity: identity, key: state.key, position: state.end, byteCount: state.byteCount,
                      chainByteCount: index.rows(from: state.header.parent).reduce(state.byteCount) { $0 + $1.byteCount },
                      madeSeconds: state.header.madeSeconds, usedSeconds: UInt64(max(0, state.lastUsed / 1_000_000_000)),
                      isPinned: state.isPinned, isAnchor: state.isAnchor)
            }
        }
    }

    /// The ids before a state; nil when it is not here.
    public func tokens(_ key: ChunkKey) -> [Int32]? {
        let rows: [StoredFile]? = lock.withLock {
            refresh()
            return index.state(key).map { [$0] + index.rows(from: $0.header.parent) }
        }
        guard let rows, let state = rows.first else { return nil }
        var parts: [[Int32]] = [state.tail], end = state.header.start
        for file in rows.dropFirst() {
            guard let open = try? OpenFile(reading: path(file)),
                  let head = try? ChunkHead(open, identity: identity, named: file.key, kind: .rows) else { return nil }
            parts.append(Array(head.tokens.prefix(end - file.header.start)))
            end = file.header.start
        }
        return parts.reversed().flatMap { $0 }
    }

    /// Keeps a state, and all it stands on, from eviction.
    ///
    /// - Returns: false when it is not here.
    /// - Throws: `StoreError` when the mark cannot be written.
    public func pin(_ key: ChunkKey, _ isPinned: Bool) throws -> Bool {
        try lock.withLock {
            refresh()
            guard let state = index.state(key) else { return false }
            if isPinned {
                if !state.isPinned { _ = try OpenFile(updating: pinPath(key)) }
            } else if !Files.remove(pinPath(key)) {
                throw StoreError("unlink", pinPath(key))
            }
            state.isPinned = isPinned
            return true
        }
    }

    /// Removes a state, and the rows that nothing else stands on.
    ///
    /// - Returns: Bytes freed; nil when it is not here.
    /// - Throws: `StoreError` when it cannot be removed.
    public func delete(_ key: ChunkKey) throws -> Int? {
        try lock.withLock {
            refresh()
            guard let state = index.state(key) else { return nil }
            let before = index.byteCount, chain = index.rows(from: state.header.parent)
            guard drop(state) else { throw StoreError("unlink", path(state)) }
            for rows in chain {
                guard index.dependents()[ObjectIdentifier(rows)] == nil else { break }
                _ = drop(rows)
            }
            return before - index.byteCount
        }
    }

    /// Removes everything of this model that is not pinned.
    ///
    /// - Returns: Bytes freed.
    /// - Throws: `StoreError` when something cannot be removed.
    public func deleteAll() throws -> Int {
        try lock.withLock {
            refresh()
            let before = index.byteCount
            for state in index.states where !state.isPinned {
                guard drop(state) else { throw StoreError("unlink", path(state)) }
            }
            // Then the rows that nothing stands on, until all that are left carry a pinned state.
            while true {
                let dependents = index.dependents()
                let loose = index.files.values.filter { !$0.isState && dependents[ObjectIdentifier($0)] == nil }
                if loose.isEmpty { return before - index.byteCount }
                for file in loose {
                    guard drop(file) else { throw StoreError("unlink", path(file)) }
                }
            }
        }
    }

    public func statistics() -> StoreStatistics {
        lock.withLock {
            refresh()
            return StoreStatistics(
                counters: counters, byteCount: index.byteCount, fileCount: index.files.count,
                stateCount: index.states.count,
                blockCount: index.files.values.reduce(0) { $0 + ($1.isState ? 0 : $1.header.blockCount) },
                writeBudgetLeft: writeBudgetLeft())
        }
    }
}

/// What happened since the store was opened.
public struct StoreCounters: Sendable {
    public var hits = 0, misses = 0
    public var bytesRead = 0, bytesWritten = 0, statesWritten = 0
    /// Not written: the write budget was spent, or the disk had no room.
    public var overBudget = 0, writeErrors = 0
    /// Removed for room; because damaged; left by a writer that died.
    public var evicted = 0, damagedRemoved = 0, leftoversRemoved = 0
    /// The latest failure to write, in words.
    public var lastError = ""

    public init() {}
}

public struct StoreStatistics: Sendable {
    public let counters: StoreCounters
    public let byteCount: Int
    public let fileCount: Int
    public let stateCount: Int
    public let blockCount: Int
    /// nil: no limit.
    public let writeBudgetLeft: Int?
}
