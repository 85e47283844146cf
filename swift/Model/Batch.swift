import Compute

/// Consecutive tokens of one session inside a batch.
public struct Span {
    public let tokens: [Int32]
    /// Position of the first of them, in tokens from the start of the session.
    public let position: Int
    /// How many of the last of them get logits.
    public let logitCount: Int

    public init(tokens: [Int32], position: Int, logitCount: Int) {
        self.tokens = tokens
        self.position = position
        self.logitCount = logitCount
    }
}

/// What one forward pass computes: spans of several sessions, one row a token, one behind another.
struct Batch {
    let spans: [Span]
    let tokens: IntTensor
    let positions: IntTensor
    /// Rows of each span.
    let rows: [Range<Int>]

    init(_ spans: [Span], _ backend: any Backend) throws {
        self.spans = spans
        tokens = try backend.upload(spans.flatMap(\.tokens))
        positions = try backend.upload(
            spans.flatMap { span in span.tokens.indices.map { Int32(span.position + $0) } })
        var start = 0
        rows = spans.map { span in
            defer { start += span.tokens.count }
            return start..<start + span.tokens.count
        }
    }
}
