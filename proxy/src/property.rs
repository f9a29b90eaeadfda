//! Properties that hold for any bytes that a client sends, for fuzzing and random tests.
//!
//! Invariants checked: nothing panics; a refusal is one well-formed error; an accepted startup
//! packet encodes to the same bytes; routing removes its options for good, keeps the user but for a
//! label, and never makes the packet longer; the watch for the cancel key finds the same however
//! the bytes are cut.

use crate::cancel::KeyWatch;
use crate::mentions::{Mentions, Selector};
use crate::refusal::Refusal;
use crate::route::{Route, route};
use crate::startup::{BODY_BYTES_MAX, LENGTH_BYTES, Packet, Startup, body_bytes, decode};

/// Checks all of it on `bytes`, taken as a first packet with its length word and as a server's
/// messages.
///
/// # Panics
/// If something does not hold.
pub fn startup_packet(bytes: &[u8]) {
    key_watch(bytes);
    let Some((header, body)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return;
    };
    match body_bytes(*header) {
        Err(refusal) => well_formed(&refusal),
        Ok(length) => assert!(length <= BODY_BYTES_MAX, "a body of {length} bytes"),
    }
    // Decodes the body whatever its length word says, or few random inputs would get further.
    let body = &body[..body.len().min(BODY_BYTES_MAX)];
    match decode(body) {
        Err(refusal) => well_formed(&refusal),
        Ok(Packet::Startup(startup)) => routed(startup, body),
        Ok(Packet::Cancel(key)) => assert_eq!(&key.encode_request()[LENGTH_BYTES..], body),
        Ok(Packet::Ssl | Packet::Gss) => assert_eq!(body.len(), 4, "a request without a body"),
    }
}

fn routed(startup: Startup, body: &[u8]) {
    assert_eq!(&startup.encode()[LENGTH_BYTES..], body, "encodes to what it came from");
    let user = startup.get("user").unwrap_or_default().to_vec();
    let read = |startup| Mentions::read(startup, Some("a.localhost"), None);
    let routed = read(startup).and_then(|mentions| {
        let means = |selector| match selector {
            Selector::Label(name) | Selector::Name(name) => (name == "a").then_some(name),
        };
        let found: Vec<_> = mentions.selectors().into_iter().map(means).collect();
        route(mentions, &found, Some("b"))
    });
    match routed {
        Err(refusal) => well_formed(&refusal),
        Ok(Route { target, startup: left, role_changed }) => {
            assert_eq!(target.branch, "a", "the host name is sure");
            let label = if role_changed { &b".a"[..] } else { b"" };
            let role = left.get("user").map(|role| [role, label].concat());
            assert!(role.as_deref().is_some_and(|role| role.eq_ignore_ascii_case(&user)));
            let encoded = left.encode();
            assert!(encoded.len() <= LENGTH_BYTES + body.len(), "longer than what came in");
            assert_eq!(decode(&encoded[LENGTH_BYTES..]), Ok(Packet::Startup(left.clone())));
            let again = read(left).map(|mentions| (mentions.option, mentions.at));
            assert_eq!(again.ok(), Some((None, None)), "nothing was left to remove");
        }
    }
}

fn well_formed(refusal: &Refusal) {
    assert!(!refusal.message.is_empty(), "says what is wrong");
    assert_eq!(refusal.sqlstate.len(), 5);
    let bytes = refusal.encode();
    let length = bytes[1..5].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    assert_eq!(length + 1, bytes.len(), "one message");
    assert!(bytes.ends_with(&[0, 0]), "fields end, and the message ends");
}

fn key_watch(bytes: &[u8]) {
    let mut whole = KeyWatch::default();
    let expected = whole.see(bytes);
    let mut cut = KeyWatch::default();
    let step = 1 + bytes.first().map_or(0, |byte| usize::from(byte % 7));
    let found = bytes.chunks(step).filter_map(|chunk| cut.see(chunk)).next();
    assert_eq!(found, expected, "in pieces of {step}");
    assert_eq!(cut.is_done(), whole.is_done());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The next of a fixed sequence of numbers that look random (splitmix64).
    fn next(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 29)
    }

    #[test]
    fn holds_for_random_bytes() {
        let mut seed = 1;
        for _ in 0..20_000 {
            let length = next(&mut seed) % 64;
            let bytes: Vec<u8> = (0..length).map(|_| next(&mut seed).to_le_bytes()[0]).collect();
            startup_packet(&bytes);
            startup_packet(
                &[b"\0\0\0\x40\0\x03\0\0user\0a\0options\0", &bytes[..], b"\0\0"].concat(),
            );
            startup_packet(
                &[b"\0\0\0\x40\0\x03\0\0user\0a\0database\0", &bytes[..], b"\0\0"].concat(),
            );
        }
    }
}
