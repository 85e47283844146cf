import CPyDS4
import Engine

@c @implementation
public func pyds4_engine_record_importance(_ engine: OpaquePointer!, _ on: Int32) -> pyds4_status {
    reporting { try unwrap(try required(engine, "engine"), as: EngineBox.self).engine.recordImportance(on != 0) }
}

@c @implementation
public func pyds4_engine_importance(_ engine: OpaquePointer!, _ index: Int,
                                    _ out: UnsafeMutablePointer<pyds4_importance>!) -> pyds4_status {
    reporting {
        let engine = unwrap(try required(engine, "engine"), as: EngineBox.self).engine, out = try required(out, "out")
        try engine.withImportance { recorder in
            guard let entries = recorder?.entries, entries.indices.contains(index) else {
                throw EngineError.invalidArgument("importance \(index) of \(recorder?.entries.count ?? 0) recorded")
            }
            let entry = entries[index], bytes = Array(entry.name.utf8)
            out.pointee = pyds4_importance(
                entry_count: entries.count, name: out.pointee.name, columns: UInt64(entry.columns),
                matrices: UInt64(entry.matrices), sums: UnsafePointer(entry.sums), counts: UnsafePointer(entry.counts))
            withUnsafeMutableBytes(of: &out.pointee.name) { name in
                let kept = bytes.prefix(name.count - 1)
                name.copyBytes(from: kept)
                name[kept.count] = 0
            }
        }
    }
}
