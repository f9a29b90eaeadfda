//! The proxy in parts: decoding and routing a startup packet, and copying between a client and a
//! server.
//!
//! `cargo bench --bench proxy`. Packets are made from the seed that is printed, and everything that
//! comes out is held against what went in. Copying goes through a whole proxy, over TCP to it and a
//! Unix socket from it, as that of a branch does; behind it is no Postgres but an echo, so that
//! what is measured is the proxy and the kernel.

use coppice::Directory;
use criterion::{BenchmarkId, Criterion, Throughput};
use pageserver::storage::disk::random::Random;
use proxy::mentions::Mentions;
use proxy::route::route;
use proxy::startup::{LENGTH_BYTES, Packet, body_bytes, decode};
use proxy::{
    Backends, Limits, Listeners, Metrics, Refusal, Relay, Routing, Selector, Settings, Target, Tls,
    Upstream,
};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::Runtime;

const SEED: u64 = 20_261_121;
/// Startup packets that are decoded in turn.
const PACKETS: usize = 64;
/// What a server says at last before a session can send queries.
const READY: &[u8] = b"Z\0\0\0\x05I";
/// `AuthenticationOk`.
const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0";

fn main() {
    println!("seed {SEED}");
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
        .configure_from_args();
    startup(&mut criterion);
    relay(&mut criterion);
    criterion.final_summary();
}

/// A packet as a client would send it, with its branch in one of the places for it, and that
/// branch.
fn packet(random: &mut Random) -> (Vec<u8>, String) {
    let branch = format!("feature/{:08x}", random.below(1 << 32));
    let (database, options) = if random.below(2) == 0 {
        (format!("app@{branch}"), "-c geqo=off".to_owned())
    } else {
        ("app".to_owned(), format!("-c geqo=off branch={branch}"))
    };
    let parameters = [
        ("user", "postgres"),
        ("database", &database),
        ("options", &options),
        ("application_name", "psql"),
        ("client_encoding", "UTF8"),
    ];
    let mut body = (3_u32 << 16).to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    body.push(0);
    let length = u32::try_from(body.len() + LENGTH_BYTES).expect("a length");
    ([&length.to_be_bytes()[..], &body].concat(), branch)
}

/// Reads, routes and encodes a packet again, as a session does before it connects.
fn pass(packet: &[u8], branch: &str) -> usize {
    let (header, body) = packet.split_first_chunk::<LENGTH_BYTES>().expect("a length");
    assert_eq!(body_bytes(*header).expect("a legal length"), body.len());
    let Ok(Packet::Startup(startup)) = decode(body) else { panic!("no startup packet") };
    let mentions = Mentions::read(startup, None, None).expect("legal options");
    let means = |selector| match selector {
        Selector::Label(text) | Selector::Name(text) => Some(text),
    };
    let found: Vec<_> = mentions.selectors().into_iter().map(means).collect();
    let route = route(mentions, &found, None).expect("a way");
    assert_eq!(route.target.branch, branch);
    route.startup.encode().len()
}

fn startup(c: &mut Criterion) {
    let mut random = Random(SEED);
    let packets: Vec<_> = (0..PACKETS).map(|_| packet(&mut random)).collect();
    let mut next = packets.iter().cycle();
    c.bench_function("decode, route and encode a startup packet", |b| {
        b.iter(|| {
            let (packet, branch) = next.next().expect("endless");
            pass(packet, branch)
        });
    });
}

/// Every branch is the same echo.
struct Echo(PathBuf);

impl Backends for Echo {
    async fn find(&self, selectors: Vec<Selector>) -> Result<Vec<Option<String>>, Refusal> {
        Ok(vec![Some("main".to_owned()); selectors.len()])
    }

    async fn acquire(&self, _: &Target) -> Result<Upstream, Refusal> {
        Ok(Upstream::new("main".to_owned(), self.0.clone(), ()))
    }
}

/// Greets as a Postgres would, and then sends back what it gets.
async fn echo(mut stream: UnixStream) -> std::io::Result<()> {
    let mut length = [0; LENGTH_BYTES];
    stream.read_exact(&mut length).await?;
    let mut body = vec![0; body_bytes(length).expect("a legal length")];
    stream.read_exact(&mut body).await?;
    stream.write_all(&[WELCOME, READY].concat()).await?;
    let (mut reader, mut writer) = stream.split();
    tokio::io::copy(&mut reader, &mut writer).await.map(drop)
}

async fn serve(directory: &Path) -> SocketAddr {
    let socket = directory.join("echo");
    let backend = UnixListener::bind(&socket).expect("listen on a Unix socket");
    tokio::spawn(async move {
        while let Ok((stream, _)) = backend.accept().await {
            tokio::spawn(echo(stream));
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("an address");
    let tls = Tls::with_authority(directory, None).expect("make a certificate");
    let (limits, metrics) = (Limits::default(), Arc::new(Metrics::default()));
    let (relay, never) = (Relay::start().expect("start threads"), std::future::pending());
    let listeners = Listeners { tcp: listener, unix: None };
    let settings = Settings { tls, routing: Routing::default(), limits, relay };
    tokio::spawn(proxy::run(listeners, settings, Arc::new(Echo(socket)), metrics, never));
    address
}

/// A session behind its greeting.
async fn connect(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("connect");
    stream.set_nodelay(true).expect("send at once");
    stream.write_all(&packet(&mut Random(SEED)).0).await.expect("send the startup packet");
    let mut greeting = vec![0; WELCOME.len() + READY.len()];
    stream.read_exact(&mut greeting).await.expect("a greeting");
    assert_eq!(greeting, [WELCOME, READY].concat());
    stream
}

/// Sends and receives `data`, both at the same time so that no buffer fills up.
async fn there_and_back(stream: &mut TcpStream, data: &[u8], back: &mut [u8]) {
    let (mut reader, mut writer) = stream.split();
    let (sent, received) = tokio::join!(writer.write_all(data), reader.read_exact(back));
    sent.expect("send");
    received.expect("receive");
    assert!(data == back, "what came back is not what was sent");
}

fn relay(c: &mut Criterion) {
    let directory = Directory::new();
    let runtime = Runtime::new().expect("start tokio");
    let address = runtime.block_on(serve(directory.path()));
    c.bench_function("connect and get a greeting", |b| {
        b.iter(|| runtime.block_on(connect(address)));
    });
    let mut group = c.benchmark_group("copy there and back");
    let mut random = Random(SEED);
    for length in [64, 64 << 10, 4 << 20] {
        let data: Vec<u8> = (0..length).map(|_| random.below(256).to_le_bytes()[0]).collect();
        let mut back = vec![0; length];
        let mut stream = runtime.block_on(connect(address));
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(BenchmarkId::from_parameter(length), |b| {
            b.iter(|| runtime.block_on(there_and_back(&mut stream, &data, &mut back)));
        });
    }
    group.finish();
}
