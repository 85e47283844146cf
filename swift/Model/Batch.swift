import Compute

/// Consecutive tokens of one session inside a batch.
public struct Span {
    public let tokens: [Int32]
    /// Position of the first of them, in tokens from the start of the session.
    public let position: Int
    /// How many of the last of them get logits.
    public let logitCount: Int
    /// How the backend may choose the next token, when only the last one gets logits.
    public let choice: TokenChoice?

    public init(tokens: [Int32], position: Int, logitCount: Int, choice: TokenChoice? = nil) {
        self.choice = choice
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
    /// Rows of each span. Those of single tokens come first.
    let rows: [Range<Int>]
    /// Spans whose own memory is worked on together: all single tokens, whose rows follow one another, then
    /// each of the others.
    let groups: [[Int]]

    init(_ spans: [Span], _ backend: any Backend) throws {
        self.spans = spans
        let single = spans.indices.filter { spans[$0].tokens.count == 1 }
        let others = spans.indices.filter { spans[$0].tokens.count != 1 }
        groups = (single.isEmpty ? [] : [single]) + others.map { [$0] }
        let order = single + others
        tokens = try backend.upload(order.flatMap { spans[$0].tokens })
        positions = try backend.upload(
            order.flatMap { index in spans[index].tokens.indices.map { Int32(spans[index].position + $0) } })
        var rows = spans.map { _ in 0..<0 }, start = 0
        for index in order {
            rows[index] = start..<start + spans[index].tokens.count
            start = rows[index].upperBound
        }
        self.rows = rows
    }
}
