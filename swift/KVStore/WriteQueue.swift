#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

/// Runs work in order on a thread of its own, so that nobody waits for a disk.
public final class WriteQueue: @unchecked Sendable {  // guarded by `state.lock`
    /// Shared with the thread, which may outlive the queue by one piece of work.
    private final class State: @unchecked Sendable {
        let lock = StoreLock()
        var waiting: [() -> Void] = []
        var isRunning = false
        var isClosed = false
        var hasThread = false
    }
    private let state = State()
    private let limit: Int

    /// - Parameter limit: Pieces of work that may wait; beyond, the oldest is given up.
    public init(limit: Int) { self.limit = limit }

    deinit { close() }

    public var waiting: Int { state.lock.withLock { state.waiting.count + (state.isRunning ? 1 : 0) } }

    /// Adds work; returns how much older work was given up for it, 0 or 1.
    public func add(_ work: @escaping () -> Void) -> Int {
        state.lock.withLock {
            guard !state.isClosed else { return 1 }
            let given = state.waiting.count >= limit ? 1 : 0
            if given > 0 { state.waiting.removeFirst() }
            state.waiting.append(work)
            if !state.hasThread { state.hasThread = start() }
            state.lock.wake()
            return given
        }
    }

    /// Waits until everything added so far is done.
    public func flush() {
        state.lock.withLock {
            while state.isRunning || !state.waiting.isEmpty, state.hasThread { state.lock.wait() }
        }
    }

    /// Finishes what waits, then takes nothing more.
    public func close() {
        flush()
        state.lock.withLock {
            state.isClosed = true
            state.lock.wake()
        }
    }

    private func start() -> Bool {
        let context = Unmanaged.passRetained(state)
        #if canImport(Glibc)
        var thread = pthread_t()
        #else
        var thread: pthread_t?
        #endif
        let failed = pthread_create(&thread, nil, { argument in
            #if canImport(Glibc)
            let pointer = argument!
            #else
            let pointer = argument
            #endif
            WriteQueue.run(Unmanaged<State>.fromOpaque(pointer).takeRetainedValue())
            return nil
        }, context.toOpaque())
        guard failed == 0 else {
            context.release()
            return false
        }
        #if canImport(Glibc)
        pthread_detach(thread)
        #else
        pthread_detach(thread!)
        #endif
        return true
    }

    private static func run(_ state: State) {
        while true {
            let work: (() -> Void)? = state.lock.withLock {
                state.isRunning = false
                state.lock.wake()
                while state.waiting.isEmpty, !state.isClosed { state.lock.wait() }
                guard !state.waiting.isEmpty else { return nil }
                state.isRunning = true
                return state.waiting.removeFirst()
            }
            guard let work else { return }
            work()
        }
    }
}
