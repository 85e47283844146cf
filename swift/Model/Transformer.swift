import Compute
import GGUF

/// The network: embed → blocks → head → logits. Written once, over any `Backend`.
///
/// Source: report §2; reference `Transformer.forward`.
public final class Transformer {
    public let configuration: Configuration
    public let formats: KVFormats
    public let backend: any Backend
    private let weights: Weights
    private let blocks: [Block]
    private let windowFrequencies: Vector
    private let compressedFrequencies: Vector
    /// The weights are views of this mapping.
    private let file: GGUFFile

    /// Rows of logits computed at once: each is a whole vocabulary.
    private static let logitRowsAtOnce = 64

    public init(_ file: GGUFFile, backend: any Backend, roundings: Bool) throws {
        let configuration = try Configuration(file)
        let weights = try Weights(file, configuration)
        let formats = KVFormats(configuration, roundings: roundings, memory: backend.memory)
        self.file = file
        self.configuration = configuration
        self.backend = backend
        self.weights = weights
        self.formats = formats
        windowFrequencies = RoPE.frequencies(configuration, compressed: false)
        compressedFrequencies = RoPE.frequencies(configuration, compressed: true)
        try backend.load(weights.matrices, weights.tables)
        blocks = weights.blocks.enumerated().map { layer, weights in
            Block(weights, configuration, formats, layer: layer, backend: backend)
        }
    }

    public func emptyCache() throws -> KVCache { try KVCache(configuration, formats) }

    /// Takes the tokens of each span into the cache of the same index and hands the logits asked for
    /// to `receive(span, row, logits)`, row counting from the span's first, `logits` [vocabulary]
    /// and valid during the call only.
    ///
    /// - Parameters:
    ///   - isCancelled: Asked between layers.
    ///   - chosen: Receives instead a span's token and its logits, which stay with the backend, where it chooses.
    /// - Throws: `ComputeError.cancelled` or `.outOfMemory`; the caches are then in an undefined state.
    public func callAsFunction(_ spans: [Span], _ caches: inout [KVCache], isCancelled: () -> Bool,
                               chosen: (Int, Int32, Tensor) throws -> Void,
                               receive: (Int, Int, UnsafeBufferPointer<Float>) -> Void) throws {
        let start = backend.arena.mark()
        defer { backend.arena.release(to: start) }
        backend.beginPass()
        let batch = try Batch(spans, backend)
        let streams = try backend.hcSpread(backend.embed(weights.tokenEmbd, batch.tokens))
        let window = Rotation(table: try backend.ropeTable(batch.positions, windowFrequencies),
                              frequencies: windowFrequencies)
        let compressed = Rotation(table: try backend.ropeTable(batch.positions, compressedFrequencies),
                                  frequencies: compressedFrequencies)
        for block in blocks {
            if isCancelled() { throw ComputeError.cancelled }
            let mark = backend.arena.mark()
            defer { backend.arena.release(to: mark) }
            try block(streams, batch, &caches, block.isCompressed ? compressed : window)
        }
        for (index, span) in spans.enumerated() {
            caches[index].position = span.position + span.tokens.count
        }
        try head(streams, batch, chosen, receive)
    }

    /// Collapses the streams of the rows that get logits, norms them, and multiplies by `output`.
    private func head(_ streams: Tensor, _ batch: Batch, _ chosen: (Int, Int32, Tensor) throws -> Void,
                      _ receive: (Int, Int, UnsafeBufferPointer<Float>) -> Void) throws {
        var wanted: [(span: Int, row: Int, batchRow: Int)] = []
        for (index, span) in batch.spans.enumerated() {
            for row in span.tokens.count - span.logitCount..<span.tokens.count {
                wanted.append((index, row, batch.rows[index].lowerBound + row))
            }
        }
        for first in stride(from: 0, to: wanted.count, by: Self.logitRowsAtOnce) {
            let mark = backend.arena.mark()
            defer { backend.arena.release(to: mark) }
            let part = wanted[first..<min(first + Self.logitRowsAtOnce, wanted.count)]
            let picked = try backend.rows(streams, part.map(\.batchRow))
            let x = try backend.hcHead(picked, weights.outputHC, norm: weights.outputNorm,
                                       epsilon: configuration.normEpsilon)
            let logits = try backend.project(x, [weights.output])[0]
            let choices = part.compactMap { batch.spans[$0.span].logitCount == 1 ? batch.spans[$0.span].choice : nil }
            if choices.count == part.count, let tokens = try backend.choose(logits, choices) {
                for (slot, want) in part.enumerated() { try chosen(want.span, tokens[slot], logits[slot..<slot + 1]) }
                continue
            }
            try backend.read(logits) { logits in
                let width = logits.count / part.count
                for (slot, want) in part.enumerated() {
                    receive(want.span, want.row,
                            UnsafeBufferPointer(rebasing: logits[slot * width..<(slot + 1) * width]))
                }
            }
        }
    }
}

/// cos and sin at the batch's positions, and the frequencies for other positions.
struct Rotation {
    let table: Tensor
    let frequencies: Vector
}
