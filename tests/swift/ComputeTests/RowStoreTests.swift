@testable import Compute
import Testing

/// Pages that copies share: each copy keeps its rows, whoever appends, and in whatever order.
@Suite struct RowStoreTests {
    private static let format = RowFormat(.float32, dim: 2, rope: 0)

    private func store(_ values: [Float] = [], rowsPerPage: Int = 4) throws -> RowStore {
        var store = RowStore(format: Self.format, rowsPerPage: rowsPerPage)
        try append(values, to: &store)
        return store
    }

    /// A row for each value.
    private func append(_ values: [Float], to store: inout RowStore) throws {
        try store.reserve(values.count)
        values.flatMap { [$0, -$0] }.withUnsafeBytes { bytes in
            store.append(bytes.bindMemory(to: UInt8.self).baseAddress!, count: values.count)
        }
    }

    private func values(_ store: RowStore) -> [Float] {
        (0..<store.count).map { store.row($0).load(as: Float.self) }
    }

    private func numbers(_ range: Range<Int>) -> [Float] { range.map { Float($0) } }

    @Test(arguments: [1, 3, 4, 5, 8, 9])
    func appendedRowsComeBackInOrder(count: Int) throws {
        var whole = try store(numbers(0..<count)), single = try store()
        for value in numbers(0..<count) { try append([value], to: &single) }
        #expect(values(whole) == numbers(0..<count))
        #expect(values(single) == numbers(0..<count))
        #expect(whole.byteCount == (count + 3) / 4 * 4 * Self.format.byteCount)
        try append([99], to: &whole)
        #expect(values(whole) == numbers(0..<count) + [99])
    }

    @Test(arguments: [1, 3, 4, 5, 7, 8])
    func copiesGoTheirOwnWays(shared: Int) throws {
        var first = try store(numbers(0..<shared)), second = first
        try append([100, 101, 102], to: &first)
        var third = first
        try append([200, 201, 202, 203, 204], to: &second)
        try append([300], to: &third)
        try append([103], to: &first)
        #expect(values(first) == numbers(0..<shared) + [100, 101, 102, 103])
        #expect(values(second) == numbers(0..<shared) + [200, 201, 202, 203, 204])
        #expect(values(third) == numbers(0..<shared) + [100, 101, 102, 300])
    }

    @Test(arguments: [0, 1, 3, 4, 5])
    func copiesOfAStoreWithRoomLeftGoTheirOwnWays(shared: Int) throws {
        var first = try store(numbers(0..<shared))
        try first.reserve(9)
        var second = first
        try append(numbers(100..<109), to: &first)
        try append(numbers(200..<209), to: &second)
        #expect(values(first) == numbers(0..<shared) + numbers(100..<109))
        #expect(values(second) == numbers(0..<shared) + numbers(200..<209))
    }

    @Test(arguments: [0, 1, 3, 4, 5, 9])
    func forgottenRowsAreWrittenOver(kept: Int) throws {
        var store = try store(numbers(0..<9))
        let copy = store
        store.truncate(to: kept)
        #expect(store.byteCount == (kept + 3) / 4 * 4 * Self.format.byteCount)
        try append([50, 51], to: &store)
        #expect(values(store) == numbers(0..<kept) + [50, 51])
        #expect(values(copy) == numbers(0..<9))
    }

    @Test func pagesAreSharedUntilOneWritesBehindTheSameRow() throws {
        func pages(_ stores: RowStore...) -> Int {
            var seen: Set<ObjectIdentifier> = []
            for store in stores { store.forEachPage { page, _ in seen.insert(page) } }
            return seen.count
        }
        var first = try store(numbers(0..<6)), second = first
        #expect(pages(first, second) == 2)
        try append([1], to: &first)
        #expect(pages(first, second) == 2)
        try append([2], to: &second)
        #expect(pages(first, second) == 3)
    }

    @Test func readCopiesRowsAcrossPages() throws {
        let store = try store(numbers(0..<11))
        var out = [Float](repeating: 0, count: 14)
        out.withUnsafeMutableBytes { store.read(2..<9, into: $0.baseAddress!) }
        #expect(out == numbers(2..<9).flatMap { [$0, -$0] })
    }
}
