import Compute

/// How attention memory is kept: in the model's own formats, or in f32 when its activation
/// roundings are off (for comparing with implementations that do not round).
public struct KVFormats: Sendable {
    public let roundings: Bool
    public let row: RowFormat
    public let indexRow: RowFormat
    /// Where caches live: that of the backend.
    public let memory: any Memory

    public init(_ c: Configuration, roundings: Bool, memory: any Memory = CPUMemory.shared) {
        self.init(headDim: c.headDim, ropeDim: c.ropeDim, indexerDim: c.indexerDim, roundings: roundings, memory: memory)
    }

    public init(headDim: Int, ropeDim: Int, indexerDim: Int, roundings: Bool, memory: any Memory = CPUMemory.shared) {
        self.roundings = roundings
        self.memory = memory
        row = RowFormat(roundings ? .fp8 : .float32, dim: headDim, rope: ropeDim)
        indexRow = RowFormat(roundings ? .fp4 : .float32, dim: indexerDim, rope: 0)
    }
}

/// The running softmax sums and rows of one compressor; see `compressor_pool_f32`.
struct CompressorState {
    var rows: RowStore
    var sums: Buffer
    let dim: Int
    let ratio: Int

    init(format: RowFormat, ratio: Int, memory: any Memory) throws {
        // A page spans 1,024 tokens at ratio 4 and 4,096 at ratio 128: small for short sessions,
        // few for long ones.
        rows = RowStore(format: format, rowsPerPage: ratio == Configuration.overlappingRatio ? 256 : 32,
                        memory: memory)
        dim = format.dim
        self.ratio = ratio
        let series = ratio == Configuration.overlappingRatio ? 3 : 1
        sums = try Buffer(byteCount: series * 3 * format.dim * 4, in: memory)
    }

    /// Gives this state sums of its own, to be written in place.
    mutating func own() throws {
        if !isKnownUniquelyReferenced(&sums) { sums = try sums.copy() }
    }
}

/// What one layer remembers of one session.
struct LayerCache {
    /// The last `window` rows; position p is in slot p mod window.
    var ring: Buffer
    let window: Int
    var compressor: CompressorState?
    var indexer: CompressorState?

    init(ratio: Int, window: Int, _ formats: KVFormats) throws {
        self.window = window
        ring = try Buffer(byteCount: window * formats.row.byteCount, in: formats.memory)
        if ratio != 0 { compressor = try CompressorState(format: formats.row, ratio: ratio, memory: formats.memory) }
        if ratio == Configuration.overlappingRatio {
            indexer = try CompressorState(format: formats.indexRow, ratio: ratio, memory: formats.memory)
        }
    }

    /// Gives this layer a ring and sums of its own, to be written in place.
    mutating func own() throws {
        if !isKnownUniquelyReferenced(&ring) { ring = try ring.copy() }
        try compressor?.own()
        try indexer?.own()
    }

    /// What a step that fills ring `slots` overwrites: these, and the running sums.
    func overwritten(_ slots: [Range<Int>]) -> [(Buffer, Range<Int>)] {
        let row = ring.byteCount / window
        return slots.map { (ring, $0.lowerBound * row..<$0.upperBound * row) }
            + [compressor, indexer].compactMap { $0 }.map { ($0.sums, 0..<$0.sums.byteCount) }
    }

    var rowCounts: (compressed: Int, index: Int) { (compressor?.rows.count ?? 0, indexer?.rows.count ?? 0) }

    mutating func truncate(to counts: (compressed: Int, index: Int)) {
        compressor?.rows.truncate(to: counts.compressed)
        indexer?.rows.truncate(to: counts.index)
    }

    var byteCount: Int {
        [compressor, indexer].compactMap { $0 }
            .reduce(ring.byteCount) { $0 + $1.rows.byteCount + $1.sums.byteCount }
    }
}

/// The attention memory of one session: everything but its tokens and logits.
///
/// Grows with use. `frozen()` is a fork: it costs nothing, whatever the length, and stays as it is while
/// the other goes on. Compressed rows are shared for ever; ring and running sums of each layer (4 MB
/// at Flash's dimensions) until one of the two takes more tokens.
public struct KVCache {
    /// Tokens taken in.
    public internal(set) var position = 0
    var layers: [LayerCache]

    public init(_ c: Configuration, _ formats: KVFormats) throws {
        try self.init(ratios: c.compressRatios, window: c.window, formats)
    }

    /// - Parameter ratios: Of compression, one a layer.
    public init(ratios: [Int], window: Int, _ formats: KVFormats) throws {
        layers = try ratios.map { try LayerCache(ratio: $0, window: window, formats) }
    }

    private init() { layers = [] }

    /// Nothing: stands in while a step owns the cache.
    public static var none: KVCache { KVCache() }

    /// Where the last savepoint was kept; the next one takes the memory over.
    private var spare: Buffer?

    /// What undoes a step that failed half-way. Rows are only ever appended, so their number is
    /// enough; kept aside are the running sums, and of the ring the slots that the step overwrites.
    public struct Savepoint {
        fileprivate let position: Int
        fileprivate let rowCounts: [(compressed: Int, index: Int)]
        fileprivate let slots: [Range<Int>]
        fileprivate let kept: Buffer?
    }

    /// Makes this cache the only owner of what `tokens` more tokens overwrite, and keeps that aside.
    public mutating func prepare(for tokens: Int) throws -> Savepoint {
        for index in layers.indices { try layers[index].own() }
        let slots = layers.first.map { slotsOverwritten(by: tokens, of: $0.window) } ?? []
        let byteCount = layers.reduce(0) { sum, layer in layer.overwritten(slots).reduce(sum) { $0 + $1.1.count } }
        let saved = Savepoint(position: position, rowCounts: layers.map(\.rowCounts), slots: slots,
                              kept: try room(for: byteCount, keep: tokens < 8))
        eachOverwritten(saved) { part, range, kept in
            part.memory.copy(from: part.contents + range.lowerBound, to: kept, byteCount: range.count)
        }
        return saved
    }

    /// Memory for a savepoint; that of single tokens is kept for the next one.
    private mutating func room(for byteCount: Int, keep: Bool) throws -> Buffer? {
        guard let memory = layers.first?.ring.memory else { return nil }
        if isKnownUniquelyReferenced(&spare), spare!.byteCount >= byteCount { return spare }
        let buffer = try Buffer(byteCount: byteCount, in: memory, isCleared: false)
        if keep { spare = buffer }
        return buffer
    }

    /// What this cache holds now, to stay as it is while this one goes on.
    public func frozen() -> KVCache {
        var twin = self
        twin.spare = nil
        return twin
    }

    public mutating func restore(_ saved: Savepoint) {
        position = saved.position
        for (index, counts) in saved.rowCounts.enumerated() { layers[index].truncate(to: counts) }
        eachOverwritten(saved) { part, range, kept in
            part.memory.copy(from: kept, to: part.contents + range.lowerBound, byteCount: range.count)
        }
    }

    /// Calls `body` with every part that the step overwrites and its place in the savepoint.
    private func eachOverwritten(_ saved: Savepoint, _ body: (Buffer, Range<Int>, UnsafeMutableRawPointer) -> Void) {
        guard var place = saved.kept?.contents else { return }
        for layer in layers {
            for (part, range) in layer.overwritten(saved.slots) {
                body(part, range, place)
                place += range.count
            }
        }
    }

    /// Ring slots that the next `tokens` positions overwrite: none, one range, or two where they wrap. The
    /// first of them takes the place of a row that no token sees any more.
    private func slotsOverwritten(by tokens: Int, of window: Int) -> [Range<Int>] {
        guard tokens <= window else { return [0..<window] }
        guard tokens > 1 else { return [] }
        let first = (position + 1) % window, end = first + tokens - 1
        return end <= window ? [first..<end] : [first..<window, 0..<end - window]
    }

    /// Bytes in use; what forks share is counted in each.
    public var byteCount: Int { layers.reduce(0) { $0 + $1.byteCount } }

    /// Bytes that `tokens` tokens need, for planning.
    public static func byteCount(_ c: Configuration, _ formats: KVFormats, tokens: Int) -> Int {
        c.compressRatios.reduce(0) { sum, ratio in
            var bytes = c.window * formats.row.byteCount
            guard ratio != 0 else { return sum + bytes }
            let overlaps = ratio == Configuration.overlappingRatio
            let page = overlaps ? 256 : 32, series = overlaps ? 3 : 1
            let pages = (tokens / ratio + page - 1) / page
            bytes += pages * page * formats.row.byteCount + series * 3 * c.headDim * 4
            if overlaps { bytes += pages * page * formats.indexRow.byteCount + series * 3 * c.indexerDim * 4 }
            return sum + bytes
        }
    }
}
