import Compute

/// A cache as bytes, and back: what is kept outside of the backend's memory.
///
/// A *block* is what 128 tokens leave behind for good: for each layer in turn its compressed rows,
/// then its index rows. A *state* is what else is needed to go on: for each layer in turn its ring,
/// then of compressor and indexer the running sums and the rows behind the last full block. Both are
/// in the formats the kernels read, on every backend.
extension KVCache {
    /// Tokens in a block: every ratio divides it, so a block holds whole rows.
    public static let blockTokens = 128

    /// Whether blocks of this model hold whole rows.
    public static func hasWholeBlocks(_ c: Configuration) -> Bool {
        c.compressRatios.allSatisfy { $0 == 0 || blockTokens % $0 == 0 }
    }

    /// Changes with anything about the bytes of a block or state.
    public static func layout(_ c: Configuration, _ formats: KVFormats) -> String {
        func name(_ f: RowFormat) -> String { "\(f.kind.rawValue):\(f.dim):\(f.rope):\(f.byteCount)" }
        return "1 window \(c.window) rows \(name(formats.row)) index \(name(formats.indexRow)) ratios \(c.compressRatios)"
    }

    /// Every row store with the rows a block has of it, in the order of a block.
    private var stores: [(state: CompressorState, rowsABlock: Int)] {
        layers.flatMap { layer in
            [layer.compressor, layer.indexer].compactMap { $0 }.map { ($0, Self.blockTokens / $0.ratio) }
        }
    }

    public var blockByteCount: Int { stores.reduce(0) { $0 + $1.rowsABlock * $1.state.rows.format.byteCount } }

    /// Copies blocks to `out`; block i to `out + (i - first) · stride`.
    public func readBlocks(first: Int, count: Int, into out: UnsafeMutableRawPointer, stride: Int) {
        var offset = 0
        for (state, rows) in stores {
            let size = rows * state.rows.format.byteCount
            withUnsafeTemporaryAllocation(byteCount: count * size, alignment: 8) { staging in
                state.rows.read(first * rows..<(first + count) * rows, into: staging.baseAddress!)
                for block in 0..<count {
                    (out + block * stride + offset).copyMemory(from: staging.baseAddress! + block * size, byteCount: size)
                }
            }
            offset += size
        }
    }

    /// Appends the rows of blocks; `stateFrom` must follow.
    public mutating func appendBlocks(count: Int, from bytes: UnsafeRawPointer, stride: Int) throws {
        var offset = 0
        try eachStore { state, rows in
            let size = rows * state.rows.format.byteCount
            try state.rows.reserve(count * rows)
            withUnsafeTemporaryAllocation(byteCount: count * size, alignment: 8) { staging in
                for block in 0..<count {
                    (staging.baseAddress! + block * size).copyMemory(from: bytes + block * stride + offset, byteCount: size)
                }
                state.rows.append(host: staging.baseAddress!, count: count * rows)
            }
            offset += size
        }
    }

    public var stateByteCount: Int { layers.reduce(0) { $0 + $1.stateByteCount(at: position) } }

    public func readState(into out: UnsafeMutableRawPointer) {
        var out = out
        for layer in layers {
            layer.ring.read(into: out, byteCount: layer.ring.byteCount)
            out += layer.ring.byteCount
            for state in [layer.compressor, layer.indexer].compactMap({ $0 }) {
                state.sums.read(into: out, byteCount: state.sums.byteCount)
                out += state.sums.byteCount
                let tail = state.tail(at: position)
                state.rows.read(tail, into: out)
                out += tail.count * state.rows.format.byteCount
            }
        }
    }

    /// Completes a cache whose blocks were appended.
    ///
    /// - Returns: false when `bytes` is not the size of such a state; the cache is then of no use.
    public mutating func restoreState(_ bytes: UnsafeRawBufferPointer, position: Int) throws -> Bool {
        self.position = position
        guard bytes.count == stateByteCount, var at = bytes.baseAddress else { return false }
        for index in layers.indices {
            try layers[index].own()
            layers[index].ring.write(at, byteCount: layers[index].ring.byteCount)
            at += layers[index].ring.byteCount
            try layers[index].compressor?.restoreTail(&at, position: position)
            try layers[index].indexer?.restoreTail(&at, position: position)
        }
        return true
    }

    private mutating func eachStore(_ body: (inout CompressorState, Int) throws -> Void) rethrows {
        for index in layers.indices {
            if let ratio = layers[index].compressor?.ratio { try body(&layers[index].compressor!, Self.blockTokens / ratio) }
            if let ratio = layers[index].indexer?.ratio { try body(&layers[index].indexer!, Self.blockTokens / ratio) }
        }
    }

    /// Identity and bytes of everything this cache holds: what several share can be counted once.
    public func forEachPart(_ body: (ObjectIdentifier, Int) -> Void) {
        for layer in layers {
            body(ObjectIdentifier(layer.ring), layer.ring.byteCount)
            for state in [layer.compressor, layer.indexer].compactMap({ $0 }) {
                body(ObjectIdentifier(state.sums), state.sums.byteCount)
                state.rows.forEachPage(body)
            }
        }
    }
}

extension LayerCache {
    func stateByteCount(at position: Int) -> Int {
        [compressor, indexer].compactMap { $0 }.reduce(ring.byteCount) {
            $0 + $1.sums.byteCount + $1.tail(at: position).count * $1.rows.format.byteCount
        }
    }
}

extension CompressorState {
    /// The rows behind the last full block.
    func tail(at position: Int) -> Range<Int> {
        position / KVCache.blockTokens * (KVCache.blockTokens / ratio)..<position / ratio
    }

    mutating func restoreTail(_ at: inout UnsafeRawPointer, position: Int) throws {
        sums.write(at, byteCount: sums.byteCount)
        at += sums.byteCount
        let count = tail(at: position).count
        try rows.reserve(count)
        rows.append(host: at, count: count)
        at += count * rows.format.byteCount
    }
}
