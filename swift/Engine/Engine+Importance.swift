import Compute

extension Engine {
    /// Begins to record, from nothing, or stops and forgets.
    ///
    /// - Throws: `EngineError.backendUnavailable` on other backends than the CPU's.
    public func recordImportance(_ on: Bool) throws {
        guard let backend = model.backend as? CPUBackend else {
            throw EngineError.backendUnavailable("importance is recorded by backend 'cpu', not '\(model.backend.name)'")
        }
        lock.withLock { backend.importance = on ? ImportanceRecorder() : nil }
    }

    /// What was recorded so far; nil when nothing is being recorded. No step runs meanwhile.
    public func withImportance<R>(_ body: (ImportanceRecorder?) throws -> R) rethrows -> R {
        try lock.withLock { try body((model.backend as? CPUBackend)?.importance) }
    }
}
