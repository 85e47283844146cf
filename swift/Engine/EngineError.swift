import Compute
import GGUF
import KVStore
import Model

/// Every way the world can fail the engine; each has a status of the C ABI.
public enum EngineError: Error, CustomStringConvertible {
    case invalidArgument(String)
    case file(GGUFError)
    case model(ModelError)
    case backendUnavailable(String)
    case outOfMemory(byteCount: Int)
    case memoryLimit(String)
    case tokenOutOfRange(token: Int32, index: Int, vocabulary: Int)
    case contextFull(needed: Int, context: Int)
    case cancelled(position: Int)
    case noLogits
    case store(String)
    case noSuchKey(String)

    /// What lower layers throw, as the engine's own.
    public init(_ error: any Error) {
        switch error {
        case let error as EngineError: self = error
        case let error as GGUFError: self = .file(error)
        case let error as ModelError: self = .model(error)
        case ComputeError.outOfMemory(let byteCount): self = .outOfMemory(byteCount: byteCount)
        case ComputeError.device(let reason): self = .backendUnavailable(reason)
        case ComputeError.cancelled: self = .cancelled(position: 0)
        case let error as StoreError: self = .store("\(error)")
        default: self = .invalidArgument("\(error)")
        }
    }

    public var description: String {
        switch self {
        case let .invalidArgument(reason): reason
        case let .file(error): error.description
        case let .model(error): error.description
        case let .backendUnavailable(reason): reason
        case .outOfMemory(0): "the system refused to start threads"
        case let .outOfMemory(byteCount): "the system refused \(byteCount) bytes of memory"
        case let .memoryLimit(reason): reason
        case let .tokenOutOfRange(token, index, vocabulary):
            "token \(token) at index \(index) is not an id from 0 to \(vocabulary - 1)"
        case let .contextFull(needed, context):
            "\(needed) tokens do not fit the session's context of \(context)"
        case let .cancelled(position): "cancelled at position \(position)"
        case let .store(reason): reason
        case let .noSuchKey(key): "no prefix \(key) is kept"
        case .noLogits: "the session has evaluated no token yet"
        }
    }
}
