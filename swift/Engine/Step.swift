import Compute
import Model

/// Tokens to evaluate behind what a session holds.
public struct Work {
    public let session: Session
    public let tokens: [Int32]
    /// Room for the logits of every token, [tokens, vocabulary]; nil: only the last ones, in the session.
    public let allLogits: UnsafeMutablePointer<Float>?
    /// How a token will be chosen from the last ones. A backend that can do so leaves it in the session's
    /// `chosenToken`, and the logits where they are.
    public let choice: TokenChoice?

    public init(session: Session, tokens: [Int32], allLogits: UnsafeMutablePointer<Float>? = nil,
                choice: TokenChoice? = nil) {
        self.choice = choice
        self.session = session
        self.tokens = tokens
        self.allLogits = allLogits
    }
}

extension Engine {
    /// Evaluates the work of several sessions together, so that each weight is read once for all.
    ///
    /// - Returns: For each item nil, or why it failed; one item's failure does not touch the others.
    public func step(_ work: [Work]) -> [EngineError?] { lock.withLock { lockedStep(work) } }

    func lockedStep(_ work: [Work]) -> [EngineError?] {
        var errors = work.enumerated().map { index, item in
            admit(item, isRepeated: work[..<index].contains { $0.session === item.session })
        }
        var done = work.map { _ in 0 }
        while true {
            var spans: [Span] = [], indices: [Int] = [], room = max(Self.batchTokens, chunkTokens)
            for (index, item) in work.enumerated() where errors[index] == nil && done[index] < item.tokens.count {
                if item.session.takeCancellation() {
                    errors[index] = .cancelled(position: item.session.tokens.count)
                    continue
                }
                let position = item.session.tokens.count
                let toBoundary = chunkTokens - position % chunkTokens
                let count = item.session.stepLimit(min(item.tokens.count - done[index], toBoundary))
                guard count <= room else { continue }
                room -= count
                let isLast = done[index] + count == item.tokens.count
                spans.append(Span(tokens: Array(item.tokens[done[index]..<done[index] + count]), position: position,
                                  logitCount: item.allLogits != nil ? count : isLast ? 1 : 0,
                                  choice: item.allLogits == nil ? item.choice : nil))
                indices.append(index)
            }
            if spans.isEmpty { return errors }
            if let error = evaluate(spans, indices, work, done) {
                for index in indices {
                    errors[index] = error
                    if case .cancelled = error {
                        _ = work[index].session.takeCancellation()
                        errors[index] = .cancelled(position: work[index].session.tokens.count)
                    }
                }
                continue
            }
            for (span, index) in zip(spans, indices) {
                done[index] += span.tokens.count
                work[index].session.advance(by: span.tokens, isEnd: done[index] == work[index].tokens.count)
            }
        }
    }

    /// Why an item cannot run at all, or nil.
    private func admit(_ item: Work, isRepeated: Bool) -> EngineError? {
        let session = item.session, vocabulary = configuration.vocabularySize
        if session.engine !== self { return .invalidArgument("the session belongs to another engine") }
        if isRepeated { return .invalidArgument("a session may appear only once in a step") }
        if item.tokens.isEmpty { return .invalidArgument("no tokens to evaluate") }
        if let index = item.tokens.firstIndex(where: { !(0..<Int32(vocabulary)).contains($0) }) {
            return .tokenOutOfRange(token: item.tokens[index], index: index, vocabulary: vocabulary)
        }
        let needed = session.tokens.count + item.tokens.count
        return needed > session.context ? .contextFull(needed: needed, context: session.context) : nil
    }

    /// One forward pass. On failure every session is as it was before it.
    private func evaluate(_ spans: [Span], _ indices: [Int], _ work: [Work], _ done: [Int]) -> EngineError? {
        let sessions = indices.map { work[$0].session }
        do {
            // What a pass may leave half done is kept aside; it is a few MB against the weights that the
            // pass reads, and no failure can then tear a session.
            var caches = sessions.map { $0.takeCache() }
            defer { for (session, cache) in zip(sessions, caches) { session.cache = cache } }
            let before = try caches.indices.map { try caches[$0].prepare(for: spans[$0].tokens.count) }
            do {
                try model(spans, &caches, isCancelled: { sessions.allSatisfy(\.isCancelled) }, chosen: { span, token, logits in
                    try sessions[span].keep(token: token, logits: logits)
                }) { span, row, logits in
                    let item = work[indices[span]]
                    if let all = item.allLogits {
                        (all + (done[indices[span]] + row) * logits.count)
                            .update(from: logits.baseAddress!, count: logits.count)
                    }
                    if row == spans[span].tokens.count - 1 { item.session.keep(logits: logits) }
                }
            } catch {
                for index in caches.indices { caches[index].restore(before[index]) }
                throw error
            }
        } catch {
            return EngineError(error)
        }
        return nil
    }
}
