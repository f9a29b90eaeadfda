//! The part of the FUSE protocol that the server speaks: [`decode()`] takes requests of the kernel,
//! [`ReplyBody`] makes answers. The layouts are those of `include/uapi/linux/fuse.h`, version 7.31
//! and later, in the byte order of the machine.

mod decode;
mod encode;
mod numbers;
#[cfg(test)]
mod tests;

pub(super) use decode::{AttributeChange, Offer, Operation, Request, Time, decode, decode_parts};
pub(super) use encode::{Listing, ReplyBody, ShownInode, answer_header, forget_name};
pub(super) use numbers::{HEADER_BYTES, RENAME_NOREPLACE, flag};
