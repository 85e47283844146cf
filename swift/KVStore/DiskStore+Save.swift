/// Gives the bytes of a prefix while it is written.
public protocol PayloadSource {
    /// Writes the payloads of `count` blocks from number `first` on; block i's at `out + i · stride`.
    func writeBlocks(first: Int, count: Int, to out: UnsafeMutableRawPointer, stride: Int)
    var stateByteCount: Int { get }
    /// Whether the state can answer a prompt that ends there.
    var answersEnd: Bool { get }
    func writeState(to out: UnsafeMutableRawBufferPointer)
}

public enum SaveResult: Sendable, Equatable {
    case saved(bytes: Int)
    /// Was there already.
    case known
    case overBudget
    case failed(String)
}

extension DiskStore {
    /// Blocks in one rows file at most: what a crash can lose, and what is evicted at once.
    static let blocksAFile = 32

    /// Writes what is not there yet of the prefix `tokens`: its blocks, then the state behind them.
    ///
    /// Everything is written aside, synced, and then given its name; rows before what stands on them.
    /// Call from one thread at a time.
    public func save(_ tokens: [Int32], _ chain: KeyChain, isAnchor: Bool, _ source: some PayloadSource) -> SaveResult {
        guard let blockByteCount else { return .failed("opened for looking after only") }
        let full = tokens.count / KeyChain.blockTokens, tail = tokens[(full * KeyChain.blockTokens)...]
        let key = KeyChain.stateKey(after: chain[full], tail)
        var known = 0
        let isKnown = lock.withLock {
            refresh()
            // What this prefix stands on must not be evicted to make room for it.
            known = min(index.knownBlocks(chain), full)
            let state = index.state(key)
            touch(state, rows: chain[known])
            return state != nil && known == full
        }
        if isKnown { return .known }
        var state = ChunkHeader(kind: .state, identity: identity, key: key, parent: chain[full],
                                start: full * KeyChain.blockTokens, tokenCount: tail.count,
                                payloadByteCount: source.stateByteCount)
        if isAnchor { state.flags |= ChunkHeader.anchorFlag }
        if source.answersEnd { state.flags |= ChunkHeader.endFlag }
        state.madeSeconds = UInt64(max(0, Files.nowNanoseconds() / 1_000_000_000))
        let needed = (full - known) * (blockByteCount + 8 + 4 * KeyChain.blockTokens) + state.fileByteCount + 4096
        guard admits(needed) else { return .overBudget }
        var written = 0
        do {
            for first in stride(from: known, to: full, by: Self.blocksAFile) {
                let blocks = first..<min(first + Self.blocksAFile, full)
                written += try writeRows(blocks, tokens, chain, blockByteCount, state.madeSeconds, source)
            }
            written += try write(state, tail, [key]) { _, buffer in source.writeState(to: buffer) }
        } catch {
            lock.withLock {
                counters.writeErrors += 1
                counters.lastError = "\(error)"
            }
            account(written)
            return .failed("\(error)")
        }
        account(written)
        lock.withLock {
            counters.statesWritten += 1
            // Newest of all, and what it stands on newer still.
            touch(index.state(key), rows: chain[full])
            thinStates(tokens, chain)
        }
        return .saved(bytes: written)
    }

    private func writeRows(_ blocks: Range<Int>, _ tokens: [Int32], _ chain: KeyChain, _ blockByteCount: Int,
                           _ now: UInt64, _ source: some PayloadSource) throws -> Int {
        let start = blocks.lowerBound * KeyChain.blockTokens, end = blocks.upperBound * KeyChain.blockTokens
        var header = ChunkHeader(kind: .rows, identity: identity, key: chain[blocks.upperBound],
                                 parent: chain[blocks.lowerBound], start: start, tokenCount: end - start,
                                 payloadByteCount: blockByteCount)
        header.madeSeconds = now
        let keys = blocks.map { chain[$0 + 1] }
        return try write(header, tokens[start..<end], keys) { count, buffer in
            source.writeBlocks(first: blocks.lowerBound, count: count, to: buffer.baseAddress!, stride: header.stride)
        }
    }

    /// One file: aside, synced, renamed, in the index.
    private func write(_ header: ChunkHeader, _ tokens: ArraySlice<Int32>, _ keys: [ChunkKey],
                       _ fill: (Int, UnsafeMutableRawBufferPointer) -> Void) throws -> Int {
        let name = Self.name(header.key, header.kind)
        // A process may have several stores, each with its own files.
        let writer = "\(processID())-\(String(UInt(bitPattern: ObjectIdentifier(self)), radix: 16))-"
        let temporary = folder + "/" + Self.temporaryPrefix + writer + name
        let payloads = UnsafeMutableRawBufferPointer.allocate(byteCount: header.blockCount * header.stride, alignment: 64)
        defer { payloads.deallocate() }
        fill(header.blockCount, UnsafeMutableRawBufferPointer(
            rebasing: header.kind == .state ? payloads.prefix(header.payloadByteCount) : payloads[...]))
        for (place, key) in keys.enumerated() {
            let at = place * header.stride
            let payload = UnsafeRawBufferPointer(rebasing: payloads[at..<at + header.payloadByteCount])
            payloads.storeBytes(of: xxh64(payload, seed: key.seed).littleEndian, toByteOffset: at + header.payloadByteCount,
                                as: UInt64.self)
        }
        Files.remove(temporary)  // of an earlier process with this number
        do {
            let file = try OpenFile(creating: temporary)
            try header.head(tokens).withUnsafeBytes { try file.append($0) }
            try file.append(UnsafeRawBufferPointer(payloads))
            try file.sync()
            try Files.rename(temporary, to: folder + "/" + name)
        } catch {
            Files.remove(temporary)
            throw error
        }
        Files.syncDirectory(folder)
        lock.withLock {
            counters.bytesWritten += header.fileByteCount
            index.insert(StoredFile(header, name: name, keys: keys, tail: header.kind == .state ? Array(tokens) : [],
                                    lastUsed: Files.nowNanoseconds()))
        }
        return header.fileByteCount
    }

    // MARK: Room

    /// Whether `byteCount` more may be written; makes room for them if so.
    private func admits(_ byteCount: Int) -> Bool {
        lock.withLock {
            func refuse(_ why: String) -> Bool {
                counters.overBudget += 1
                counters.lastError = why
                return false
            }
            if let left = writeBudgetLeft(), left < byteCount { return refuse("the write budget of 24 hours is spent") }
            if byteCount > options.budgetBytes { return refuse("\(byteCount) bytes do not fit the budget of \(options.budgetBytes)") }
            makeRoom(for: byteCount)
            guard Files.freeBytes(folder) - options.reserveBytes >= byteCount else {
                return refuse("the file system has no room beyond its reserve of \(options.reserveBytes) bytes")
            }
            return true
        }
    }

    /// Evicts until `byteCount` more fit the budget: what was unused for longest first, leaves before
    /// what they stand on, rows that nothing can use before all, anchors last, pinned states never.
    private func makeRoom(for byteCount: Int) {
        var foreign = foreignFiles()
        var excess = index.byteCount + foreign.reduce(0) { $0 + $1.byteCount } + byteCount - options.budgetBytes
        guard excess > 0 else { return }
        var dependents = index.dependents()
        func rank(_ file: StoredFile) -> Int { file.isAnchor ? 1 : 0 }
        // Popped from the end: worst last.
        func sorted(_ files: [StoredFile]) -> [StoredFile] { files.sorted { (rank($0), $0.lastUsed) > (rank($1), $1.lastUsed) } }
        var leaves = sorted(index.files.values.filter { !$0.isPinned && dependents[ObjectIdentifier($0)] == nil })
        foreign.sort { $0.used > $1.used }
        while excess > 0 {
            if let other = foreign.last, leaves.last.map({ rank($0) == 1 || other.used < $0.lastUsed }) ?? true {
                foreign.removeLast()
                if Files.remove(other.path) { counters.evicted += 1 }
                excess -= other.byteCount
                continue
            }
            guard let file = leaves.popLast() else { return }
            guard drop(file) else { continue }
            counters.evicted += 1
            excess -= file.byteCount
            // Blocks that two files hold can have moved to the other: count anew what stands on what.
            guard let parent = index.block(file.header.parent)?.file else { continue }
            let left = (dependents[ObjectIdentifier(parent)] ?? 1) - 1
            dependents[ObjectIdentifier(parent)] = left == 0 ? nil : left
            // Rows without a state are of little use: theirs is the same age, so they go soon.
            if left == 0, !leaves.contains(where: { $0 === parent }), index.dependents()[ObjectIdentifier(parent)] == nil {
                leaves = sorted(leaves + [parent])
            }
        }
    }

    /// Files of other models in the same directory. Their chains are not known here; ancestors are
    /// always marked later than what stands on them, so the oldest can go. Models with a pin are left alone.
    private func foreignFiles() -> [(path: String, byteCount: Int, used: Int64)] {
        Files.names(in: directory).filter { $0.hasPrefix(Self.folderPrefix) && $0 != "\(Self.folderPrefix)\(identity)" }.flatMap { name in
            let names = Files.names(in: directory + "/" + name), isPinned = names.contains { $0.hasSuffix(".pin") }
            return names.compactMap { file -> (path: String, byteCount: Int, used: Int64)? in
                guard file.hasSuffix(".rows") || file.hasSuffix(".state") else { return nil }
                let path = directory + "/" + name + "/" + file
                return Files.info(path).map { (path, $0.byteCount, isPinned ? .max : $0.changed) }
            }
        }
    }

    /// Of the states along one timeline, keeps those whose loss would cost most: their bytes together
    /// stay within 40 % of the rows they stand on, but two always stay. So a conversation that is
    /// saved every turn costs little more than its end.
    private func thinStates(_ tokens: [Int32], _ chain: KeyChain) {
        let states = index.states(along: tokens, chain)
        let rowBytes = chain.keys.count * ((blockByteCount ?? 0) + 4 * KeyChain.blockTokens)
        var kept = states.filter { !$0.isPinned && !$0.isAnchor }
        while kept.count > 2, kept.reduce(0, { $0 + $1.byteCount }) > rowBytes * 2 / 5 {
            let costs = kept.indices.dropLast().map { at in
                let gap = kept[at + 1].end - (at == 0 ? 0 : kept[at - 1].end)
                return Double(gap) / Double(tokens.count - kept[at].end + 4 * KeyChain.blockTokens)
            }
            let at = costs.indices.min { costs[$0] < costs[$1] }!
            _ = drop(kept[at])
            kept.remove(at: at)
        }
    }
}
