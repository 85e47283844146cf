import CPyDS4
import Engine

private func session(_ handle: OpaquePointer!) -> Session { unwrap(handle, as: Session.self) }

private func tokens(_ pointer: UnsafePointer<Int32>?, _ count: Int) throws -> [Int32] {
    guard count > 0 else { return [] }
    return Array(UnsafeBufferPointer(start: try required(pointer, "tokens"), count: count))
}

@c @implementation
public func pyds4_session_create(_ engine: OpaquePointer!, _ context: UInt64,
                                 _ session: UnsafeMutablePointer<OpaquePointer?>!) -> pyds4_status {
    reporting {
        let box = unwrap(try required(engine, "engine"), as: EngineBox.self), out = try required(session, "session")
        out.pointee = handle(try box.engine.session(context: context == 0 ? nil : Int(clamping: context)))
    }
}

@c @implementation
public func pyds4_session_free(_ session: OpaquePointer!) { release(session) }

@c @implementation
public func pyds4_session_fork(_ handleIn: OpaquePointer!,
                               _ twin: UnsafeMutablePointer<OpaquePointer?>!) -> pyds4_status {
    reporting {
        let out = try required(twin, "twin")
        out.pointee = handle(session(try required(handleIn, "session")).fork())
    }
}

@c @implementation
public func pyds4_session_position(_ handle: OpaquePointer!) -> UInt64 { UInt64(session(handle).position) }

@c @implementation
public func pyds4_session_context(_ handle: OpaquePointer!) -> UInt64 { UInt64(session(handle).context) }

@c @implementation
public func pyds4_session_byte_count(_ handle: OpaquePointer!) -> UInt64 { UInt64(session(handle).byteCount) }

@c @implementation
public func pyds4_session_tokens(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<Int32>!,
                                 _ capacity: Int) -> pyds4_status {
    reporting {
        let all = session(try required(handle, "session")).allTokens
        guard capacity > 0 else { return }
        try required(out, "tokens").update(from: all, count: min(all.count, capacity))
    }
}

@c @implementation
public func pyds4_session_logits(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<Float>!,
                                 _ count: Int) -> pyds4_status {
    reporting {
        let out = try required(out, "logits")
        try session(try required(handle, "session")).withLogits { logits in
            guard count == logits.count else {
                throw EngineError.invalidArgument("logits: expected room for \(logits.count), found \(count)")
            }
            out.update(from: logits.baseAddress!, count: count)
        }
    }
}

@c @implementation
public func pyds4_session_rewind(_ handle: OpaquePointer!, _ prompt: UnsafePointer<Int32>!, _ n_tokens: Int,
                                 _ kept: UnsafeMutablePointer<Int>!) -> pyds4_status {
    reporting {
        try required(kept, "kept").pointee = try session(try required(handle, "session")).rewind(tokens(prompt, n_tokens))
    }
}

@c @implementation
public func pyds4_session_prefill(_ handle: OpaquePointer!, _ prompt: UnsafePointer<Int32>!, _ n_tokens: Int,
                                  _ reused: UnsafeMutablePointer<Int>!) -> pyds4_status {
    reporting {
        let count = try session(try required(handle, "session")).prefill(tokens(prompt, n_tokens))
        if let reused { reused.pointee = count }
    }
}

@c @implementation
public func pyds4_session_decode(_ handle: OpaquePointer!, _ token: Int32) -> pyds4_status {
    reporting {
        let session = session(try required(handle, "session"))
        if let error = session.engine.step([Work(session: session, tokens: [token])])[0] { throw error }
    }
}

@c @implementation
public func pyds4_session_cancel(_ handle: OpaquePointer!) { if let handle { session(handle).cancel() } }
