import CPyDS4
import Engine
#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

/// The message of the last failed call, one a thread, as a C string that lives until the next.
private let messageKey: pthread_key_t = {
    var key = pthread_key_t()
    #if canImport(Glibc)
    pthread_key_create(&key) { free($0) }
    #else
    pthread_key_create(&key) { free($0) }
    #endif
    return key
}()

private func setMessage(_ text: String) {
    free(pthread_getspecific(messageKey))
    pthread_setspecific(messageKey, strdup(text))
}

private let noMessage = StaticString("")

@c @implementation
public func pyds4_last_error() -> UnsafePointer<CChar>! {
    if let message = pthread_getspecific(messageKey) {
        return UnsafePointer(message.assumingMemoryBound(to: CChar.self))
    }
    return UnsafeRawPointer(noMessage.utf8Start).assumingMemoryBound(to: CChar.self)
}

extension EngineError {
    var status: pyds4_status {
        switch self {
        case .invalidArgument: PYDS4_INVALID_ARGUMENT
        case let .file(error): error.kind == .notFound ? PYDS4_FILE_NOT_FOUND : PYDS4_BAD_FILE
        case .model: PYDS4_UNSUPPORTED_MODEL
        case .backendUnavailable: PYDS4_BACKEND_UNAVAILABLE
        case .outOfMemory, .memoryLimit: PYDS4_OUT_OF_MEMORY
        case .tokenOutOfRange: PYDS4_TOKEN_OUT_OF_RANGE
        case .contextFull: PYDS4_CONTEXT_FULL
        case .cancelled: PYDS4_CANCELLED
        case .noLogits: PYDS4_NO_LOGITS
        case .store: PYDS4_STORE_FAILED
        case .noSuchKey: PYDS4_NO_SUCH_KEY
        }
    }
}

/// Runs the body of one call: what it throws becomes a status and this thread's message.
func reporting(_ body: () throws -> Void) -> pyds4_status {
    do {
        try body()
        return PYDS4_OK
    } catch {
        let error = EngineError(error)
        setMessage(error.description)
        return error.status
    }
}

/// A pointer argument that may not be NULL.
func required<T>(_ pointer: T?, _ name: StaticString) throws -> T {
    guard let pointer else { throw EngineError.invalidArgument("\(name): expected a pointer, found NULL") }
    return pointer
}

/// Handles are retained references to boxes and classes.
func handle(_ object: AnyObject) -> OpaquePointer { OpaquePointer(Unmanaged.passRetained(object).toOpaque()) }
func unwrap<T: AnyObject>(_ handle: OpaquePointer, as type: T.Type) -> T {
    Unmanaged<T>.fromOpaque(UnsafeRawPointer(handle)).takeUnretainedValue()
}
func release(_ handle: OpaquePointer?) {
    if let handle { Unmanaged<AnyObject>.fromOpaque(UnsafeRawPointer(handle)).release() }
}

/// Strings that callers read as long as their owner lives.
final class CStrings {
    private(set) var pointers: [UnsafeMutablePointer<CChar>] = []
    init(_ texts: [String]) { pointers = texts.map { strdup($0) } }
    deinit { pointers.forEach { free($0) } }
}
