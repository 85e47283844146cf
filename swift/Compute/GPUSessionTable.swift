/// Addresses of what sessions own, where kernels find them; see kernel_args.h.
struct SessionTable {
    let address: UnsafeRawPointer
    /// Of a line; 0 when there is only one, for all tokens.
    let stride: UInt32
    /// Compressed rows for which a line has addresses. Not how many there are: it grows by doubling, so that
    /// the commands of a token stay those of the token before while rows are appended.
    let room: Int
}

/// The tables of one forward pass, in the order in which it asks for them. A table stays at its place
/// from pass to pass and is written again only when an address in it changed: commands that were kept
/// can be replayed with other sessions, or after these have moved.
final class SessionTables {
    private let memory: GPUMemory
    /// One list a place in the pass: a table for each size that was asked for there.
    private var places: [[Int: (buffer: Buffer, words: [UInt64])]] = []
    private var next = 0

    init(_ memory: GPUMemory) { self.memory = memory }

    func beginPass() { next = 0 }

    func table(_ words: [UInt64]) throws -> UnsafeRawPointer {
        if next == places.count { places.append([:]) }
        defer { next += 1 }
        guard let found = places[next][words.count] else {
            let buffer = try Buffer(byteCount: words.count * 8, in: memory)
            buffer.write(words, byteCount: words.count * 8)
            places[next][words.count] = (buffer, words)
            return UnsafeRawPointer(buffer.contents)
        }
        if found.words != words {
            // Nothing of this pass uses it yet, so what waits to be started need not start first.
            memory.writeAhead(words, to: found.buffer.contents, byteCount: words.count * 8)
            places[next][words.count]!.words = words
        }
        return UnsafeRawPointer(found.buffer.contents)
    }
}

extension GPUBackend {
    public func beginPass() { sessionTables.beginPass() }

    /// A line for each session: `own`, its ring or running sums, then the pages of its rows.
    func sessionTable(_ lines: [(own: UnsafeMutableRawPointer?, rows: RowStore?)]) throws -> SessionTable {
        let pages = lines.map { $0.rows?.pageCount ?? 0 }.max()!
        var room = pages == 0 ? 0 : 1
        while room < pages { room *= 2 }
        var words: [UInt64] = []
        words.reserveCapacity(lines.count * (1 + room))
        for line in lines {
            let end = words.count + 1 + room
            words.append(line.own.map { device.kernelAddress($0) } ?? 0)
            line.rows?.forEachPageAddress { words.append(device.kernelAddress($0)) }
            while words.count < end { words.append(0) }
        }
        return SessionTable(address: try sessionTables.table(words), stride: lines.count > 1 ? UInt32(1 + room) : 0,
                            room: room * (lines.first { $0.rows != nil }?.rows!.rowsPerPage ?? 0))
    }
}
