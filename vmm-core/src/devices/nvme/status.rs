//! How a command ends: the status field of a completion (NVM Express base 1.4 §4.6.1.2).

/// Status code, type and the bit "do not retry", as they stand above the phase bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Status(pub u16);

const DO_NOT_RETRY: u16 = 1 << 14;

const fn generic(code: u16) -> Status {
    Status(code | DO_NOT_RETRY)
}

const fn specific(code: u16) -> Status {
    Status(1 << 8 | code | DO_NOT_RETRY)
}

const fn media(code: u16) -> Status {
    Status(2 << 8 | code)
}

impl Status {
    pub const SUCCESS: Status = Status(0);
    pub const INVALID_OPCODE: Status = generic(0x01);
    pub const INVALID_FIELD: Status = generic(0x02);
    pub const DATA_TRANSFER: Status = generic(0x04);
    pub const INTERNAL: Status = Status(0x06);
    pub const ABORT_REQUESTED: Status = generic(0x07);
    pub const INVALID_NAMESPACE: Status = generic(0x0b);
    pub const SEQUENCE: Status = generic(0x0c);
    pub const INVALID_SGL_SEGMENT: Status = generic(0x0d);
    pub const INVALID_SGL_COUNT: Status = generic(0x0e);
    pub const SGL_LENGTH: Status = generic(0x0f);
    pub const SGL_TYPE: Status = generic(0x11);
    pub const PRP_OFFSET: Status = generic(0x13);
    pub const WRITE_PROTECTED: Status = generic(0x20);
    pub const LBA_RANGE: Status = generic(0x80);

    pub const CQ_INVALID: Status = specific(0x00);
    pub const INVALID_QUEUE_ID: Status = specific(0x01);
    pub const INVALID_QUEUE_SIZE: Status = specific(0x02);
    pub const TOO_MANY_EVENT_REQUESTS: Status = specific(0x05);
    pub const INVALID_VECTOR: Status = specific(0x08);
    pub const INVALID_LOG_PAGE: Status = specific(0x09);
    pub const INVALID_QUEUE_DELETION: Status = specific(0x0c);
    pub const NOT_SAVEABLE: Status = specific(0x0d);

    pub const WRITE_FAULT: Status = media(0x80);
    pub const UNRECOVERED_READ: Status = media(0x81);
}
