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
        self.roundings = roundings
        self.memory = memory
        row = RowFormat(roundings ? .fp8 : .float32, dim: c.headDim, rope: c.ropeDim)
        indexRow = RowFormat(roundings ? .fp4 : .float32, dim: c.indexerDim, rope: 0)
    }
}

/// The running softmax sums and rows of one compressor; see `compressor_pool_f32`.
struct CompressorState {
    var rows: RowStore
    var sums: Buffer
    let dim: Int

    init(format: RowFormat, ratio: Int, memory: any Memory) throws {
        // A page spans 1,024 tokens at ratio 4 and 4,096 at ratio 128: small for short sessions,
        // few for long ones.
        rows = RowStore(format: format, rowsPerPage: ratio == Configuration.overlappingRatio ? 256 : 32,
                        memory: memory)
        dim = format.dim
        let series = ratio == Configuration.overlappingRatio ? 3 : 1
        sums = try Buffer(byteCount: series * 3 * format.dim * 4, in: memory)
    }

    /// Shares the rows, copies the sums.
    func fork() throws -> CompressorState {
        var twin = self
        twin.sums = try sums.copy()
        return twin
    }
}

/// What one layer remembers of one session.
struct LayerCache {
    /// The last `window` rows; position p is in slot p mod window.
    var ring: Buffer
    var compressor: CompressorState?
    var indexer: CompressorState?

    init(_ c: Configuration, _ formats: KVFormats, layer: Int) throws {
        ring = try Buffer(byteCount: c.window * formats.row.byteCount, in: formats.memory)
        let ratio = c.compressRatios[layer]
        if ratio != 0 { compressor = try CompressorState(format: formats.row, ratio: ratio, memory: formats.memory) }
        if ratio == Configuration.overlappingRatio {
            indexer = try CompressorState(format: formats.indexRow, ratio: ratio, memory: formats.memory)
        }
    }

    func fork() throws -> LayerCache {
        var twin = self
        twin.ring = try ring.copy()
        twin.compressor = try compressor?.fork()
        twin.indexer = try indexer?.fork()
        return twin
    }

    var byteCount: Int {
        [compressor, indexer].compactMap { $0 }
            .reduce(ring.byteCount) { $0 + $1.rows.byteCount + $1.sums.byteCount }
    }
}

/// The attention memory of one session: everything but its tokens and logits.
///
/// Grows with use. `fork` costs a ring and the running sums of each layer (3.8 MB at Flash's
/// dimensions), whatever the length: compressed rows are shared until one side writes to their page.
public struct KVCache {
    /// Tokens taken in.
    public internal(set) var position = 0
    var layers: [LayerCache]

    public init(_ c: Configuration, _ formats: KVFormats) throws {
        layers = try (0..<c.layerCount).map { try LayerCache(c, formats, layer: $0) }
    }

    private init(position: Int, layers: [LayerCache]) {
        self.position = position
        self.layers = layers
    }

    /// Nothing: stands in while a step owns the cache.
    public static var none: KVCache { KVCache(position: 0, layers: []) }

    public func fork() throws -> KVCache { KVCache(position: position, layers: try layers.map { try $0.fork() }) }

    /// What undoes a step that failed half-way: rows are only ever appended, so their number is enough.
    public struct Savepoint {
        fileprivate let position: Int
        fileprivate let layers: [(ring: Buffer, compressor: (Int, Buffer)?, indexer: (Int, Buffer)?)]
    }

    public func savepoint() throws -> Savepoint {
        Savepoint(position: position, layers: try layers.map { layer in
            (try layer.ring.copy(), try layer.compressor.map { ($0.rows.count, try $0.sums.copy()) },
             try layer.indexer.map { ($0.rows.count, try $0.sums.copy()) })
        })
    }

    public mutating func restore(_ saved: Savepoint) {
        position = saved.position
        for (index, layer) in saved.layers.enumerated() {
            layers[index].ring = layer.ring
            if let (count, sums) = layer.compressor {
                layers[index].compressor!.rows.truncate(to: count)
                layers[index].compressor!.sums = sums
            }
            if let (count, sums) = layer.indexer {
                layers[index].indexer!.rows.truncate(to: count)
                layers[index].indexer!.sums = sums
            }
        }
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
