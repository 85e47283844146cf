import Compute
#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

/// Multi-query attention over a sliding window and, in layers with compression, over compressed rows.
///
/// Low-rank queries, one shared row a token as key and value, a sink a head, and a grouped low-rank
/// output. Source: report §2.3; reference `Attention.forward`.
struct Attention {
    private let weights: AttentionWeights
    private let c: Configuration
    private let formats: KVFormats
    private let layer: Int
    private let backend: any Backend
    private let compressor: Compressor?
    private let indexer: Indexer?

    init(_ weights: AttentionWeights, _ c: Configuration, _ formats: KVFormats, layer: Int, backend: any Backend) {
        self.weights = weights
        self.c = c
        self.formats = formats
        self.layer = layer
        self.backend = backend
        let ratio = c.compressRatios[layer]
        compressor = weights.compressor.map {
            Compressor($0, ratio: ratio, format: formats.row, c, backend: backend)
        }
        indexer = weights.indexer.map { Indexer($0, ratio: ratio, formats, c, backend: backend) }
    }

    /// x [tokens, D], normed → [tokens, D].
    func callAsFunction(_ x: Tensor, _ batch: Batch, _ caches: inout [KVCache], _ rotation: Rotation) throws -> Tensor {
        // Everything that reads x, in one pass over it.
        let fromX = try backend.project(
            x, [weights.qA, weights.kv] + (compressor?.inputs ?? []) + (indexer?.inputs ?? []))
        let queryLatent = try backend.rmsNorm(fromX[0], width: c.queryRank, weight: weights.qANorm,
                                              epsilon: c.normEpsilon)
        let fromLatent = try backend.project(queryLatent, [weights.qB] + (indexer.map { [$0.queries] } ?? []))

        let q = try backend.rmsNorm(fromLatent[0], width: c.headDim, weight: nil, epsilon: c.normEpsilon)
        backend.rope(q, heads: c.headCount, table: rotation.table, inverse: false)
        let kv = try backend.rmsNorm(fromX[1], width: c.headDim, weight: weights.kvANorm, epsilon: c.normEpsilon)
        backend.rope(kv, heads: 1, table: rotation.table, inverse: false)
        let rows = try backend.encodeRows(kv, formats.row)
        let indexQuery = try indexer?.prepare(fromLatent[1], rotation)

        let attended = try backend.arena.tensor(x.rows, c.headCount * c.headDim)
        for (index, span) in batch.spans.enumerated() {
            let range = batch.rows[index]
            let result = try attend(
                span, q[range], rows + range.lowerBound * formats.row.byteCount, &caches[index].layers[layer],
                fromX.dropFirst(2).map { $0[range] }, indexQuery?[range], rotation)
            attended[range].floats.update(from: result.floats, count: result.count)
        }
        backend.rope(attended, heads: c.headCount, table: rotation.table, inverse: true)
        let latent = try backend.projectGroups(attended, weights.outputA, groups: c.outputGroupCount)
        return try backend.project(latent, [weights.outputB])[0]
    }

    /// The part that belongs to one session: extends its compressed rows, attends, keeps its window.
    private func attend(_ span: Span, _ q: Tensor, _ rows: UnsafeMutablePointer<UInt8>, _ cache: inout LayerCache,
                        _ compressing: [Tensor], _ indexQuery: Tensor?, _ rotation: Rotation) throws -> Tensor {
        var selection: RowSelection?
        if let compressor {
            try compressor.append(kv: compressing[0], gate: compressing[1], at: span.position, to: &cache.compressor!,
                                  rotation)
            selection = try compressor.visibleRows(span)
        }
        if let indexer, let indexQuery {
            try indexer.compressor.append(kv: compressing[2], gate: compressing[3], at: span.position,
                                          to: &cache.indexer!, rotation)
            selection = try indexer.select(indexQuery, weights: compressing[4], span, cache.indexer!.rows)
        }
        let out = try backend.attend(AttentionCall(
            q: q, heads: c.headCount, position: span.position, window: c.window, format: formats.row,
            ring: cache.ring, chunk: rows, compressed: cache.compressor?.rows, selection: selection,
            sinks: weights.sinks, scale: 1 / Float(c.headDim).squareRoot()))
        keepWindow(rows, span, cache.ring)
        return out
    }

    /// The last `window` of these rows go into their slots of the ring.
    private func keepWindow(_ rows: UnsafeMutablePointer<UInt8>, _ span: Span, _ ring: Buffer) {
        let size = formats.row.byteCount
        for i in max(0, span.tokens.count - c.window)..<span.tokens.count {
            let slot = (span.position + i) % c.window
            (ring.contents + slot * size).copyMemory(from: rows + i * size, byteCount: size)
        }
    }
}
