import CPyDS4
import Engine
import KVStore

private func engine(_ handle: OpaquePointer!) -> Engine { unwrap(handle, as: EngineBox.self).engine }
private func session(_ handle: OpaquePointer!) throws -> Session { unwrap(try required(handle, "session"), as: Session.self) }

// MARK: Memory

@c @implementation
public func pyds4_engine_prefix_budget(_ handle: OpaquePointer!, _ budget_bytes: UInt64) {
    engine(handle).prefixes.budgetBytes = Int(clamping: budget_bytes)
}

@c @implementation
public func pyds4_engine_prefixes(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<pyds4_prefixes>!) {
    let s = engine(handle).prefixes.statistics()
    out.pointee = pyds4_prefixes(
        budget_bytes: UInt64(s.budgetBytes), byte_count: UInt64(s.byteCount), entry_count: UInt64(s.entryCount),
        hits: UInt64(s.hits), misses: UInt64(s.misses), evicted: UInt64(s.evicted), reused_tokens: UInt64(s.reusedTokens))
}

@c @implementation
public func pyds4_engine_prefixes_clear(_ handle: OpaquePointer!) { engine(handle).prefixes.removeAll() }

@c @implementation
public func pyds4_engine_bind(_ handle: OpaquePointer!, _ content: UnsafePointer<CChar>!) -> pyds4_status {
    reporting {
        try engine(try required(handle, "engine")).prefixes.bind(String(cString: try required(content, "content")))
    }
}

@c @implementation
public func pyds4_engine_identity(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<UInt8>!) {
    out.update(from: engine(handle).prefixes.identity.bytes, count: ChunkKey.byteCount)
}

@c @implementation
public func pyds4_session_save(_ handle: OpaquePointer!) -> pyds4_status { reporting { try session(handle).save() } }

@c @implementation
public func pyds4_session_recall(_ handle: OpaquePointer!, _ prompt: UnsafePointer<Int32>!, _ n_tokens: Int,
                                 _ kept: UnsafeMutablePointer<Int>!) -> pyds4_status {
    reporting {
        let ids = n_tokens > 0 ? Array(UnsafeBufferPointer(start: try required(prompt, "tokens"), count: n_tokens)) : []
        try required(kept, "kept").pointee = try session(handle).rewind(ids, mayEnd: true)
    }
}

@c @implementation
public func pyds4_session_resume(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<pyds4_resume>!) -> pyds4_status {
    reporting {
        let r = try session(handle).lastResume
        try required(out, "out").pointee = pyds4_resume(
            reused: UInt64(r.reused), known: UInt64(r.known), byte_count: UInt64(r.byteCount),
            source: r.source.rawValue, expected: r.expected)
    }
}

// MARK: Disk

@c @implementation
public func pyds4_engine_kv_attach(_ handle: OpaquePointer!, _ options: UnsafePointer<pyds4_kv_options>!) -> pyds4_status {
    reporting {
        let engine = engine(try required(handle, "engine"))
        guard let c = options?.pointee else { return try engine.attachDisk(nil) }
        try checkSize(c.struct_size, of: pyds4_kv_options.self, "options")
        var o = StoreOptions()
        o.budgetBytes = Int(clamping: c.budget_bytes)
        o.writeBudgetBytes = Int(clamping: c.write_budget_bytes)
        o.reserveBytes = Int(clamping: c.reserve_bytes)
        try engine.attachDisk(String(cString: try required(c.directory, "options.directory")), options: o,
                              fewestTokens: Int(clamping: c.fewest_tokens))
    }
}

@c @implementation
public func pyds4_engine_kv_flush(_ handle: OpaquePointer!) { engine(handle).flushDisk() }

/// What a `pyds4_kv` handle points to: the stores of one directory, one a model.
final class KVBox {
    let stores: [DiskStore]
    let engine: Engine?

    init(_ stores: [DiskStore], engine: Engine?) {
        self.stores = stores
        self.engine = engine
    }

    var entries: [DiskStore.Entry] { stores.flatMap { $0.entries() }.sorted { $0.usedSeconds > $1.usedSeconds } }

    /// Does `body` with the first store that knows `key`.
    func first<R>(_ key: UnsafePointer<CChar>!, _ body: (DiskStore, ChunkKey) throws -> R?) throws -> R {
        let name = String(cString: try required(key, "key"))
        guard let key = ChunkKey(hex: name) else {
            throw EngineError.invalidArgument("key: expected 40 hexadecimal digits, found '\(name)'")
        }
        for store in stores {
            if let result = try body(store, key) { return result }
        }
        throw EngineError.noSuchKey(name)
    }
}

private func box(_ kv: OpaquePointer!) throws -> KVBox { unwrap(try required(kv, "kv"), as: KVBox.self) }

@c @implementation
public func pyds4_engine_kv(_ handleIn: OpaquePointer!, _ kv: UnsafeMutablePointer<OpaquePointer?>!) -> pyds4_status {
    reporting {
        let engine = engine(try required(handleIn, "engine")), out = try required(kv, "kv")
        guard let store = engine.prefixes.diskStore else {
            throw EngineError.invalidArgument("the engine keeps no prefixes on disk")
        }
        out.pointee = handle(KVBox([store], engine: engine))
    }
}

@c @implementation
public func pyds4_kv_open(_ directory: UnsafePointer<CChar>!, _ budget_bytes: UInt64,
                          _ kv: UnsafeMutablePointer<OpaquePointer?>!) -> pyds4_status {
    reporting {
        let directory = String(cString: try required(directory, "directory")), out = try required(kv, "kv")
        var options = StoreOptions()
        options.budgetBytes = Int(clamping: budget_bytes)
        out.pointee = handle(KVBox(try DiskStore.all(in: directory, options: options), engine: nil))
    }
}

@c @implementation
public func pyds4_kv_free(_ kv: OpaquePointer!) { release(kv) }

@c @implementation
public func pyds4_kv_list(_ kv: OpaquePointer!, _ entries: UnsafeMutablePointer<pyds4_kv_entry>!, _ capacity: Int,
                          _ count: UnsafeMutablePointer<Int>!) -> pyds4_status {
    reporting {
        let all = try box(kv).entries
        try required(count, "count").pointee = all.count
        guard capacity > 0 else { return }
        let out = try required(entries, "entries")
        for (index, entry) in all.prefix(capacity).enumerated() {
            var c = pyds4_kv_entry()
            writeText("\(entry.key)", &c.key)
            writeText("\(entry.identity)", &c.identity)
            (c.position, c.byte_count) = (UInt64(entry.position), UInt64(entry.byteCount))
            c.chain_bytes = UInt64(entry.chainByteCount)
            (c.made_s, c.used_s) = (entry.madeSeconds, entry.usedSeconds)
            (c.pinned, c.anchor) = (entry.isPinned ? 1 : 0, entry.isAnchor ? 1 : 0)
            out[index] = c
        }
    }
}

@c @implementation
public func pyds4_kv_tokens(_ kv: OpaquePointer!, _ key: UnsafePointer<CChar>!, _ tokens: UnsafeMutablePointer<Int32>!,
                            _ capacity: Int, _ count: UnsafeMutablePointer<Int>!) -> pyds4_status {
    reporting {
        let all = try box(kv).first(key) { $0.tokens($1) }
        try required(count, "count").pointee = all.count
        guard capacity > 0 else { return }
        try required(tokens, "tokens").update(from: all, count: min(capacity, all.count))
    }
}

@c @implementation
public func pyds4_kv_pin(_ kv: OpaquePointer!, _ key: UnsafePointer<CChar>!, _ pinned: Int32) -> pyds4_status {
    reporting { _ = try box(kv).first(key) { try $0.pin($1, pinned != 0) ? true : nil } }
}

@c @implementation
public func pyds4_kv_delete(_ kv: OpaquePointer!, _ key: UnsafePointer<CChar>!,
                            _ freed_bytes: UnsafeMutablePointer<UInt64>!) -> pyds4_status {
    reporting {
        let box = try box(kv)
        let freed = key == nil ? try box.stores.reduce(0) { $0 + (try $1.deleteAll()) } : try box.first(key) { try $0.delete($1) }
        if let freed_bytes { freed_bytes.pointee = UInt64(freed) }
    }
}

@c @implementation
public func pyds4_kv_statistics(_ kv: OpaquePointer!, _ out: UnsafeMutablePointer<pyds4_kv_stats>!) {
    let box = unwrap(kv, as: KVBox.self)
    var c = pyds4_kv_stats()
    c.write_budget_left = -1
    for s in box.stores.map({ $0.statistics() }) {
        let n = s.counters
        c.byte_count += UInt64(s.byteCount)
        c.files += UInt64(s.fileCount)
        c.states += UInt64(s.stateCount)
        c.blocks += UInt64(s.blockCount)
        c.hits += UInt64(n.hits)
        c.misses += UInt64(n.misses)
        c.bytes_read += UInt64(n.bytesRead)
        c.bytes_written += UInt64(n.bytesWritten)
        c.states_written += UInt64(n.statesWritten)
        c.over_budget += UInt64(n.overBudget)
        c.write_errors += UInt64(n.writeErrors)
        c.evicted += UInt64(n.evicted)
        c.damaged_removed += UInt64(n.damagedRemoved)
        c.leftovers_removed += UInt64(n.leftoversRemoved)
        if let left = s.writeBudgetLeft { c.write_budget_left = Int64(left) }
        if !n.lastError.isEmpty { writeText(n.lastError, &c.last_error) }
    }
    if let queue = box.engine?.diskQueue { (c.waiting, c.given_up) = (UInt64(queue.waiting), UInt64(queue.givenUp)) }
    out.pointee = c
}

/// Writes text into a C array of characters, cut to fit.
private func writeText<T>(_ text: String, _ out: inout T) {
    withUnsafeMutableBytes(of: &out) { bytes in
        var cut = Array(text.utf8.prefix(bytes.count - 1))
        while let last = cut.last, last >= 0x80, String(validating: cut, as: UTF8.self) == nil { cut.removeLast() }
        bytes.copyBytes(from: cut + [0])
    }
}
