/// One file of the store, as its head described it.
final class StoredFile {
    let header: ChunkHeader
    let name: String
    /// The key after each of its blocks; a state's own key.
    let keys: [ChunkKey]
    /// Ids of a state's tail; of rows, none (their keys stand for them).
    let tail: [Int32]
    /// When it was last of use: grows with every use, whatever the clock does.
    var lastUsed: Int64
    var isPinned = false

    init(_ header: ChunkHeader, name: String, keys: [ChunkKey], tail: [Int32], lastUsed: Int64) {
        (self.header, self.name, self.keys, self.tail, self.lastUsed) = (header, name, keys, tail, lastUsed)
    }

    var key: ChunkKey { header.key }
    var isState: Bool { header.kind == .state }
    var isAnchor: Bool { header.flags & ChunkHeader.anchorFlag != 0 }
    var byteCount: Int { header.fileByteCount }
    /// Whether a prompt that ends here needs no evaluation at all.
    var answersEnd: Bool { header.flags & ChunkHeader.endFlag != 0 }
    /// Position of a state, or behind the last block.
    var end: Int { header.start + header.tokenCount }
}

/// What is in the directory of one model: which file holds which block, and where one can go on.
struct StoreIndex {
    private(set) var files: [String: StoredFile] = [:]
    private(set) var byteCount = 0
    private var blocks: [ChunkKey: (file: StoredFile, block: Int)] = [:]
    /// By the key of the block they stand behind.
    private var statesByParent: [ChunkKey: [StoredFile]] = [:]
    /// Blocks that more than one file held when they came in; nearly always none.
    private var doubles = 0

    var states: [StoredFile] { files.values.filter(\.isState) }

    mutating func insert(_ file: StoredFile) {
        guard files.updateValue(file, forKey: file.name) == nil else { return }
        byteCount += file.byteCount
        if file.isState {
            statesByParent[file.header.parent, default: []].append(file)
        } else {
            // A block that two files hold is read from the first.
            for (block, key) in file.keys.enumerated() {
                if blocks[key] == nil { blocks[key] = (file, block) } else { doubles += 1 }
            }
        }
    }

    mutating func remove(_ file: StoredFile) {
        guard files.removeValue(forKey: file.name) != nil else { return }
        byteCount -= file.byteCount
        if file.isState {
            statesByParent[file.header.parent]?.removeAll { $0 === file }
            if statesByParent[file.header.parent]?.isEmpty == true { statesByParent[file.header.parent] = nil }
            return
        }
        for key in file.keys where blocks[key]?.file === file { blocks[key] = nil }
        guard doubles > 0 else { return }
        for other in files.values where !other.isState {
            for (block, key) in other.keys.enumerated() where blocks[key] == nil { blocks[key] = (other, block) }
        }
    }

    func block(_ key: ChunkKey) -> (file: StoredFile, block: Int)? { blocks[key] }
    func states(behind key: ChunkKey) -> [StoredFile] { statesByParent[key] ?? [] }
    func state(_ key: ChunkKey) -> StoredFile? { files[DiskStore.name(key, .state)] }

    /// How many blocks of a timeline are here, from its start without a gap.
    func knownBlocks(_ chain: KeyChain) -> Int { chain.keys.firstIndex { blocks[$0] == nil } ?? chain.keys.count }

    /// The furthest state from which `prompt` can go on, at most at `limit`, or at `end` if it answers that.
    func furthestState(_ prompt: [Int32], _ chain: KeyChain, limit: Int, end: Int) -> StoredFile? {
        for known in stride(from: knownBlocks(chain), through: 0, by: -1) {
            let start = known * KeyChain.blockTokens
            let best = states(behind: chain[known]).filter { state in
                state.end > 0 && (state.end <= limit || (state.end == end && state.answersEnd)) && prompt[start...].starts(with: state.tail)
            }.max { $0.end < $1.end }
            if let best { return best }
        }
        return nil
    }

    /// States from which a timeline passes on its way, in order of position.
    func states(along tokens: [Int32], _ chain: KeyChain) -> [StoredFile] {
        (0...knownBlocks(chain)).flatMap { known in
            states(behind: chain[known]).filter { state in
                state.end <= tokens.count && tokens[(known * KeyChain.blockTokens)...].starts(with: state.tail)
            }.sorted { $0.end < $1.end }
        }
    }

    /// The rows files from `key` back to the start of its timeline, deepest first.
    func rows(from key: ChunkKey) -> [StoredFile] {
        var found: [StoredFile] = [], key = key
        while let file = blocks[key]?.file {
            found.append(file)
            key = file.header.parent
        }
        return found
    }

    /// How many files stand on each rows file.
    func dependents() -> [ObjectIdentifier: Int] {
        var counts: [ObjectIdentifier: Int] = [:]
        for file in files.values {
            if let parent = blocks[file.header.parent]?.file { counts[ObjectIdentifier(parent), default: 0] += 1 }
        }
        return counts
    }

    /// Files that cannot be reached from the start of any timeline.
    func orphans(identity: ChunkKey) -> [StoredFile] {
        var sound: [ChunkKey: Bool] = [identity: true]
        func isSound(_ key: ChunkKey) -> Bool {
            var path: [ChunkKey] = [], at = key
            while sound[at] == nil {
                path.append(at)
                guard let file = blocks[at]?.file else {
                    sound[at] = false
                    break
                }
                at = file.header.parent
            }
            let result = sound[at]!
            for key in path { sound[key] = result }
            return result
        }
        return files.values.filter { !isSound($0.header.parent) }
    }
}
