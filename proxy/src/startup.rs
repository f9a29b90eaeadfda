//! The first packet of a connection: decoding, checking and encoding it again. No I/O.
//!
//! Any bytes are either one of the four kinds of first packet, checked as Postgres checks them, or
//! a [`Refusal`] that says what is wrong. An unchanged [`Startup`] encodes to the bytes it came
//! from.
//!
//! [`Startup`] keeps parameters as raw bytes in their order: `pgwire`'s own `Startup` replaces what
//! is not UTF-8, sorts and merges names and accepts a missing end, but the branch's Postgres must
//! see what the client sent. The request codes are `pgwire`'s.

use std::fmt;

use pgwire::messages::startup::{GssEncRequest, SslRequest, Startup as Wire};

use crate::refusal::{NO_USER, PROTOCOL_VIOLATION, Refusal, UNSUPPORTED_VERSION};

/// Bytes of the length word in front of a first packet, which counts itself.
pub const LENGTH_BYTES: usize = 4;
/// Postgres's own limit (`MAX_STARTUP_PACKET_LENGTH`) on what follows the length word.
pub const BODY_BYTES_MAX: usize = 10_000;
/// The code or version that every first packet has.
const CODE_BYTES: usize = 4;
/// Code of a `CancelRequest`, which `pgwire` keeps to itself; a test holds it to what `pgwire`
/// recognizes.
const CANCEL_CODE: i32 = 1234 << 16 | 5678;
/// Process number in front of a cancel key.
const PID_BYTES: usize = 4;
/// Secret of a cancel key: four bytes in protocol 3.0, up to 256 since 3.2.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 4..=256;

/// The first packet of a client.
#[derive(Debug, PartialEq, Eq)]
pub enum Packet {
    /// Asks for TLS.
    Ssl,
    /// Asks for GSSAPI encryption.
    Gss,
    /// Asks to cancel the query of another connection.
    Cancel(CancelKey),
    /// Starts a session.
    Startup(Startup),
}

/// Process number and secret of a session, as both `BackendKeyData` and `CancelRequest` carry them.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CancelKey(Vec<u8>);

/// A start of a session: protocol version and parameters, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Startup {
    version: u32,
    params: Vec<(Vec<u8>, Vec<u8>)>,
}

/// How many bytes follow the length word `header`.
pub fn body_bytes(header: [u8; LENGTH_BYTES]) -> Result<usize, Refusal> {
    let length = u32::from_be_bytes(header);
    match usize::try_from(length).ok().and_then(|all| all.checked_sub(LENGTH_BYTES)) {
        Some(body) if (CODE_BYTES..=BODY_BYTES_MAX).contains(&body) => Ok(body),
        _ => Err(Refusal::new(
            PROTOCOL_VIOLATION,
            format!("invalid length of startup packet: {length}"),
        )
        .with_hint(
            "This port speaks the Postgres protocol: connect with psql or another Postgres client. \
                 The HTTP API has its own port.",
        )),
    }
}

/// Decodes what followed the length word.
pub fn decode(body: &[u8]) -> Result<Packet, Refusal> {
    let Some((code, rest)) = body.split_first_chunk::<CODE_BYTES>() else {
        return Err(malformed("too short"));
    };
    match i32::from_be_bytes(*code) {
        SslRequest::BODY_MAGIC_NUMBER if rest.is_empty() => Ok(Packet::Ssl),
        GssEncRequest::BODY_MAGIC_NUMBER if rest.is_empty() => Ok(Packet::Gss),
        CANCEL_CODE => CancelKey::decode(rest)
            .map(Packet::Cancel)
            .ok_or_else(|| malformed("invalid length of cancel request")),
        _ => Startup::decode(u32::from_be_bytes(*code), rest).map(Packet::Startup),
    }
}

fn malformed(what: &str) -> Refusal {
    Refusal::new(PROTOCOL_VIOLATION, format!("invalid startup packet: {what}"))
}

impl CancelKey {
    /// The key in the body of a `BackendKeyData` or behind the code of a `CancelRequest`, if it has
    /// a legal length.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let secret = bytes.len().checked_sub(PID_BYTES)?;
        SECRET_BYTES.contains(&secret).then(|| Self(bytes.to_vec()))
    }

    /// The `CancelRequest` that presents this key.
    pub fn encode_request(&self) -> Vec<u8> {
        framed(CANCEL_CODE.cast_unsigned(), &self.0)
    }
}

/// A key is a secret, so nothing but its process number is ever shown.
impl fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CancelKey(process {:02x?})", &self.0[..PID_BYTES])
    }
}

impl Startup {
    fn decode(version: u32, rest: &[u8]) -> Result<Self, Refusal> {
        check_version(version)?;
        let Some((0, mut strings)) = rest.split_last().map(|(last, strings)| (*last, strings))
        else {
            return Err(malformed("expected terminator as last byte"));
        };
        let mut params = Vec::new();
        while !strings.is_empty() {
            let name = take_string(&mut strings)?;
            if name.is_empty() {
                return Err(malformed("expected terminator as last byte"));
            }
            params.push((name, take_string(&mut strings)?));
        }
        let startup = Self { version, params };
        if startup.get("user").is_none_or(<[u8]>::is_empty) {
            let text = "no PostgreSQL user name specified in startup packet";
            return Err(Refusal::new(NO_USER, text));
        }
        Ok(startup)
    }

    /// The packet, length word included.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        for (name, value) in &self.params {
            body.extend_from_slice(name);
            body.push(0);
            body.extend_from_slice(value);
            body.push(0);
        }
        body.push(0);
        framed(self.version, &body)
    }

    /// The value of `name`. Of several Postgres uses the last, so that is the one.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let param = self.params.iter().rev().find(|(key, _)| key == name.as_bytes());
        param.map(|(_, value)| value.as_slice())
    }

    /// Adds a client's address to the name of its application, unless the packet then gets too
    /// long.
    pub(crate) fn add_host(&mut self, host: &str) {
        const NAME: &str = "application_name";
        let text = match self.get(NAME) {
            Some(name) if !name.is_empty() => [name, b" - ", host.as_bytes()].concat(),
            _ => host.as_bytes().to_vec(),
        };
        let added = NAME.len() + text.len() + 2;
        if self.encode().len() + added > LENGTH_BYTES + BODY_BYTES_MAX || text.contains(&0) {
            return;
        }
        self.set(NAME, None);
        self.params.push((NAME.as_bytes().to_vec(), text));
    }

    /// Replaces the value that [`get`](Self::get) answers; with nothing, removes every `name`.
    ///
    /// # Panics
    /// If the value contains a zero byte, which would end it early and make a parameter of the
    /// rest.
    pub fn set(&mut self, name: &str, value: Option<Vec<u8>>) {
        let Some(value) = value else {
            self.params.retain(|(key, _)| key != name.as_bytes());
            return;
        };
        assert!(!value.contains(&0), "a parameter contains no zero byte");
        if let Some(param) = self.params.iter_mut().rev().find(|(key, _)| key == name.as_bytes()) {
            param.1 = value;
        }
    }
}

/// Postgres answers a minor version it does not know itself, so only the major version is checked.
fn check_version(version: u32) -> Result<(), Refusal> {
    let (major, minor) = (version >> 16, version & 0xffff);
    if (u32::from(Wire::PG_PROTOCOL_EARLIEST)..=u32::from(Wire::PG_PROTOCOL_LATEST))
        .contains(&major)
    {
        return Ok(());
    }
    let message =
        format!("unsupported frontend protocol {major}.{minor}: this server speaks protocol 3");
    Err(Refusal::new(UNSUPPORTED_VERSION, message).with_hint(
        "Connect with a client of Postgres 7.4 or later; on this port only Postgres clients are \
         served.",
    ))
}

/// Takes a zero-terminated string off the front of `bytes`.
fn take_string(bytes: &mut &[u8]) -> Result<Vec<u8>, Refusal> {
    let end = bytes.iter().position(|byte| *byte == 0);
    let end = end.ok_or_else(|| malformed("a parameter without a value"))?;
    let string = bytes[..end].to_vec();
    *bytes = &bytes[end + 1..];
    Ok(string)
}

/// A first packet: length word, code or version, rest.
fn framed(code: u32, rest: &[u8]) -> Vec<u8> {
    let length = LENGTH_BYTES + CODE_BYTES + rest.len();
    assert!(length <= LENGTH_BYTES + BODY_BYTES_MAX, "a first packet of {length} bytes");
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], &code.to_be_bytes()[..], rest].concat()
}

#[cfg(test)]
pub(crate) mod tests {
    use pgwire::messages::cancel::CancelRequest;

    use super::*;

    /// Protocol 3.0.
    const V3: u32 = 3 << 16;

    /// A startup with these parameters, made the way a client makes it.
    pub(crate) fn startup(params: &[(&str, &str)]) -> Startup {
        decode_startup(&packet(params))
    }

    fn packet(params: &[(&str, &str)]) -> Vec<u8> {
        let bytes = |text: &&str| text.as_bytes().to_vec();
        let params = params.iter().map(|(name, value)| (bytes(name), bytes(value))).collect();
        Startup { version: V3, params }.encode()
    }

    fn decode_startup(packet: &[u8]) -> Startup {
        match decode(&packet[LENGTH_BYTES..]) {
            Ok(Packet::Startup(startup)) => startup,
            other => panic!("not a startup: {other:?}"),
        }
    }

    #[test]
    fn decodes_and_encodes_the_same_bytes() {
        for version in [V3, V3 + 2, V3 + 9999] {
            let raw = framed(version, b"user\0al\xffice\0b\0\0a\x001\0b\x002\0\0");
            let startup = decode_startup(&raw);
            assert_eq!(startup.encode(), raw);
            assert_eq!(startup.get("user"), Some(&b"al\xffice"[..]));
            assert_eq!(startup.get("b"), Some(&b"2"[..]), "the last one counts");
            assert_eq!(startup.get("c"), None);
        }
    }

    #[test]
    fn sets_and_removes() {
        let mut startup = decode_startup(&packet(&[("user", "a"), ("x", "1"), ("x", "2")]));
        startup.set("x", Some(b"3".to_vec()));
        startup.set("y", Some(b"4".to_vec()));
        assert_eq!(startup.encode(), packet(&[("user", "a"), ("x", "1"), ("x", "3")]));
        startup.set("x", None);
        assert_eq!(startup.encode(), packet(&[("user", "a")]));
    }

    #[test]
    fn the_address_of_the_client_follows_the_name_of_its_application() {
        let with_host = |params: &[(&str, &str)]| {
            let mut startup = startup(params);
            startup.add_host("10.0.0.7:4711");
            startup.get("application_name").map(|name| String::from_utf8_lossy(name).into_owned())
        };
        assert_eq!(with_host(&[("user", "a")]).as_deref(), Some("10.0.0.7:4711"));
        let named = [("user", "a"), ("application_name", "psql")];
        assert_eq!(with_host(&named).as_deref(), Some("psql - 10.0.0.7:4711"));
        let full = "x".repeat(BODY_BYTES_MAX - 40);
        assert_eq!(with_host(&[("user", "a"), ("options", &full)]), None, "no room");
    }

    #[test]
    fn knows_the_requests() {
        assert_eq!(decode(&80_877_103_u32.to_be_bytes()), Ok(Packet::Ssl));
        assert_eq!(decode(&80_877_104_u32.to_be_bytes()), Ok(Packet::Gss));
        for secret in [4, 32, 256] {
            let key = CancelKey(vec![7; PID_BYTES + secret]);
            let request = key.encode_request();
            assert!(CancelRequest::is_cancel_request_packet(&request));
            assert_eq!(
                body_bytes([request[0], request[1], request[2], request[3]]),
                Ok(8 + secret)
            );
            assert_eq!(decode(&request[LENGTH_BYTES..]), Ok(Packet::Cancel(key)));
        }
    }

    #[test]
    fn shows_no_secret() {
        let key = CancelKey(vec![0, 0, 1, 2, 0xde, 0xad, 0xbe, 0xef]);
        assert_eq!(format!("{key:?}"), "CancelKey(process [00, 00, 01, 02])");
    }

    #[test]
    fn refuses_lengths_out_of_bounds() {
        for (length, body) in [(8, Some(4)), (9, Some(5)), (10_004, Some(10_000))] {
            assert_eq!(body_bytes(u32::to_be_bytes(length)).ok(), body, "{length}");
        }
        for header in [[0; 4], *b"\0\0\0\x07", 10_005_u32.to_be_bytes(), *b"GET ", [0xff; 4]] {
            let refusal = body_bytes(header).unwrap_err();
            assert_eq!(refusal.sqlstate, PROTOCOL_VIOLATION, "{header:?}");
        }
    }

    #[test]
    fn refuses_malformed_packets() {
        let version = V3.to_be_bytes();
        let table: [(&[u8], &str); 9] = [
            (b"", PROTOCOL_VIOLATION),
            (b"user\0a\0", PROTOCOL_VIOLATION),
            (b"user\0a", PROTOCOL_VIOLATION),
            (b"user\0\0", PROTOCOL_VIOLATION),
            (b"user\0a\0\0x\0", PROTOCOL_VIOLATION),
            (b"user\0a\0\0\0", PROTOCOL_VIOLATION),
            (b"user\0\0\0", NO_USER),
            (b"database\0a\0\0", NO_USER),
            (b"\0", NO_USER),
        ];
        for (rest, sqlstate) in table {
            let refusal = decode(&[&version[..], rest].concat()).unwrap_err();
            assert_eq!(refusal.sqlstate, sqlstate, "{:?}", rest.escape_ascii().to_string());
        }
        for version in [0, 1, 2 << 16, 4 << 16, u32::MAX, 80_877_105] {
            let refusal = decode(&framed(version, b"user\0a\0\0")[LENGTH_BYTES..]).unwrap_err();
            assert_eq!(refusal.sqlstate, UNSUPPORTED_VERSION, "{version}");
        }
        for secret in [0, 3, 257] {
            let raw = framed(CANCEL_CODE.cast_unsigned(), &vec![1; PID_BYTES + secret]);
            assert_eq!(decode(&raw[LENGTH_BYTES..]).unwrap_err().sqlstate, PROTOCOL_VIOLATION);
        }
    }

    #[test]
    fn refuses_a_packet_cut_at_any_byte() {
        let whole =
            packet(&[("user", "alice"), ("database", "app"), ("options", "-c work_mem=4MB")]);
        for end in LENGTH_BYTES..whole.len() {
            let refusal = decode(&whole[LENGTH_BYTES..end]).unwrap_err();
            assert!(!refusal.message.is_empty(), "cut at {end}");
        }
    }
}
