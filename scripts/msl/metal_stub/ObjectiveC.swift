// ObjectiveC.swift — the one function of that module that MetalDevice.swift calls, to type-check it elsewhere.

public func autoreleasepool<Result>(invoking body: () throws -> Result) rethrows -> Result { try body() }
