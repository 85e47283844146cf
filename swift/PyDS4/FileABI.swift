import CPyDS4
import Compute
import Engine
import GGUF
import Model

/// What a `pyds4_file` handle points to.
final class FileBox {
    let file: GGUFFile
    let keys: CStrings
    let names: CStrings
    let typeNames: CStrings
    let paths: CStrings

    init(_ file: GGUFFile) {
        self.file = file
        keys = CStrings(file.metadata.map(\.key))
        names = CStrings(file.tensors.map(\.name))
        typeNames = CStrings(file.tensors.map { "\($0.type)" })
        paths = CStrings(file.paths)
    }
}

private func box(_ file: OpaquePointer!) -> FileBox { unwrap(file, as: FileBox.self) }

@c @implementation
public func pyds4_file_open(_ path: UnsafePointer<CChar>!, _ file: UnsafeMutablePointer<OpaquePointer?>!) -> pyds4_status {
    reporting {
        let path = try required(path, "path"), file = try required(file, "file")
        file.pointee = handle(FileBox(try GGUFFile(path: String(cString: path))))
    }
}

@c @implementation
public func pyds4_file_free(_ file: OpaquePointer!) { release(file) }

@c @implementation
public func pyds4_file_byte_count(_ file: OpaquePointer!) -> UInt64 { UInt64(box(file).file.byteCount) }

@c @implementation
public func pyds4_file_part_count(_ file: OpaquePointer!) -> Int { box(file).paths.pointers.count }

@c @implementation
public func pyds4_file_part_path(_ file: OpaquePointer!, _ index: Int) -> UnsafePointer<CChar>! {
    let paths = box(file).paths.pointers
    return paths.indices.contains(index) ? UnsafePointer(paths[index]) : nil
}

@c @implementation
public func pyds4_file_metadata_count(_ file: OpaquePointer!) -> Int { box(file).file.metadata.count }

@c @implementation
public func pyds4_file_metadata(_ file: OpaquePointer!, _ index: Int,
                                _ out: UnsafeMutablePointer<pyds4_metadata>!) -> pyds4_status {
    reporting {
        let box = box(try required(file, "file"))
        guard box.file.metadata.indices.contains(index) else {
            throw EngineError.invalidArgument("metadata \(index) of \(box.file.metadata.count)")
        }
        let value = box.file.metadata[index].value
        // Stays valid after the call: the handle keeps the file mapped.
        let bytes = value.withBytes { $0 }
        try required(out, "out").pointee = pyds4_metadata(
            key: box.keys.pointers[index], type: Int32(value.type.rawValue),
            element_type: value.elementType.map { Int32($0.rawValue) } ?? -1, count: UInt64(value.count),
            data: bytes.baseAddress, byte_count: UInt64(bytes.count))
    }
}

@c @implementation
public func pyds4_file_tensor_count(_ file: OpaquePointer!) -> Int { box(file).file.tensors.count }

@c @implementation
public func pyds4_file_tensor(_ file: OpaquePointer!, _ index: Int,
                              _ out: UnsafeMutablePointer<pyds4_tensor>!) -> pyds4_status {
    reporting {
        let box = box(try required(file, "file"))
        guard box.file.tensors.indices.contains(index) else {
            throw EngineError.invalidArgument("tensor \(index) of \(box.file.tensors.count)")
        }
        let tensor = box.file.tensors[index], type = Int32(tensor.type.rawValue)
        let shape = (0..<4).map { $0 < tensor.shape.count ? UInt64(tensor.shape[$0]) : 1 }
        try required(out, "out").pointee = pyds4_tensor(
            name: box.names.pointers[index], type_name: box.typeNames.pointers[index], type: type,
            dimension_count: Int32(tensor.shape.count), shape: (shape[0], shape[1], shape[2], shape[3]),
            byte_count: UInt64(tensor.byteCount), offset: UInt64(tensor.fileOffset),
            file_index: Int32(tensor.fileIndex), computable: Matrix.canCompute(type: type) ? 1 : 0)
    }
}

@c @implementation
public func pyds4_file_memory(_ file: OpaquePointer!, _ tokens: UInt64, _ roundings: Int32,
                              _ memory: UnsafeMutablePointer<pyds4_memory>!) -> pyds4_status {
    reporting {
        let file = box(try required(file, "file")).file
        guard tokens <= 1 << 40 else { throw EngineError.invalidArgument("tokens: expected at most 2^40, found \(tokens)") }
        let plan = MemoryPlan(file, try Configuration(file), tokens: Int(tokens), roundings: roundings != 0)
        try required(memory, "memory").pointee = pyds4_memory(
            weights: UInt64(plan.weights), kv: UInt64(plan.kv), buffers: UInt64(plan.buffers))
    }
}
