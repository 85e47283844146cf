/// Takes payloads while a prefix is read.
public protocol PayloadSink {
    /// `count` blocks from number `first` on; block i's payload begins at `bytes + i · stride`.
    mutating func takeBlocks(first: Int, count: Int, _ bytes: UnsafeRawPointer, stride: Int) throws
    mutating func takeState(_ bytes: UnsafeRawBufferPointer, position: Int) throws
}

extension DiskStore {
    /// A prefix that can be read.
    public struct Match {
        public let position: Int
        /// Which file and which of its blocks, in order of the timeline.
        fileprivate let runs: [(file: StoredFile, blocks: Range<Int>)]
        fileprivate let state: StoredFile
        public var byteCount: Int {
            runs.reduce(state.header.payloadByteCount) { $0 + $1.blocks.count * $1.file.header.payloadByteCount }
        }
    }

    /// The longest stored prefix of `prompt`, at most `limit` tokens (or `end`, where nothing would be
    /// left to evaluate), and how many of the prompt's tokens some stored timeline shares.
    public func find(_ prompt: [Int32], _ chain: KeyChain, limit: Int, end: Int = -1) -> (match: Match?, known: Int) {
        lock.withLock {
            refresh()
            let known = index.knownBlocks(chain) * KeyChain.blockTokens
            guard let state = index.furthestState(prompt, chain, limit: limit, end: end) else { return (nil, known) }
            var runs: [(file: StoredFile, blocks: Range<Int>)] = []
            for key in chain.keys.prefix(state.header.start / KeyChain.blockTokens) {
                let (file, block) = index.block(key)!
                if let last = runs.last, last.file === file, last.blocks.upperBound == block {
                    runs[runs.count - 1].blocks = last.blocks.lowerBound..<block + 1
                } else {
                    runs.append((file, block..<block + 1))
                }
            }
            return (Match(position: state.end, runs: runs, state: state), max(known, state.end))
        }
    }

    /// Reads what `find` found, checking every byte.
    ///
    /// - Returns: false when a file was gone or damaged; it is then out of the index, and another
    ///   `find` says what is left.
    /// - Throws: What `sink` throws.
    public func load(_ match: Match, into sink: inout some PayloadSink) throws -> Bool {
        var done = 0
        for run in match.runs {
            guard let ok = try read(run.file, run.blocks, { bytes in
                try sink.takeBlocks(first: done, count: run.blocks.count, bytes.baseAddress!, stride: run.file.header.stride)
            }), ok else { return false }
            done += run.blocks.count
        }
        let state = match.state
        let ok = try read(state, 0..<1) { bytes in
            try sink.takeState(UnsafeRawBufferPointer(rebasing: bytes.prefix(state.header.payloadByteCount)), position: state.end)
        }
        guard ok == true else { return false }
        lock.withLock {
            counters.hits += 1
            counters.bytesRead += match.byteCount
            touch(state, rows: state.header.parent)
        }
        return true
    }

    /// Says that a lookup found nothing.
    public func countMiss() { lock.withLock { counters.misses += 1 } }

    /// Hands over consecutive payloads with their checksums, found right. nil: the file is of no use.
    private func read(_ file: StoredFile, _ blocks: Range<Int>, _ body: (UnsafeRawBufferPointer) throws -> Void) throws -> Bool? {
        let header = file.header
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: blocks.count * header.stride, alignment: 64)
        defer { bytes.deallocate() }
        do {
            let open = try OpenFile(reading: path(file))
            guard try open.read(into: bytes, at: header.headByteCount + blocks.lowerBound * header.stride) else {
                discard(file, damaged: true)
                return nil
            }
        } catch {
            discard(file, damaged: false)
            return nil
        }
        for (place, block) in blocks.enumerated() {
            let payload = UnsafeRawBufferPointer(rebasing: bytes[place * header.stride..<(place + 1) * header.stride])
            let kept = UInt64(littleEndian: payload.loadUnaligned(fromByteOffset: header.payloadByteCount, as: UInt64.self))
            guard xxh64(UnsafeRawBufferPointer(rebasing: payload.prefix(header.payloadByteCount)), seed: file.keys[block].seed) == kept
            else {
                discard(file, damaged: true)
                return nil
            }
        }
        try body(UnsafeRawBufferPointer(bytes))
        return true
    }

    /// Forgets a file that cannot be read; removes one that is damaged.
    private func discard(_ file: StoredFile, damaged: Bool) {
        lock.withLock {
            guard index.files[file.name] === file else { return }
            if damaged {
                counters.damagedRemoved += 1
                _ = drop(file)
            } else {
                index.remove(file)
            }
        }
    }
}
