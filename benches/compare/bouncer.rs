//! PgBouncer in front of a Postgres, to compare the proxy with.

use coppice::loop_volume::run;
use coppice::sides::Side;
use coppice::{LIMIT, free_port};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The program; Debian puts it where only root looks.
pub(crate) const PROGRAM: &str = "/usr/sbin/pgbouncer";

/// A running PgBouncer. Dropped, it ends.
pub(crate) struct Bouncer {
    child: Child,
    address: SocketAddr,
    home: PathBuf,
    password: String,
}

impl Bouncer {
    /// Starts it in front of `side`, with the same authentication; an error says why there can be
    /// none.
    ///
    /// It takes sessions as the proxy does, one connection of its own for each, and has the
    /// server's own secret, so that each client proves as much as it would to Postgres.
    pub(crate) fn start(side: &Side, directory: &Path) -> Result<Self, String> {
        run(Command::new(PROGRAM).arg("--version"))?;
        let home = directory.join("pgbouncer");
        fs::create_dir(&home).map_err(|e| format!("make {}: {e}", home.display()))?;
        let secret = side.sql("select rolpassword from pg_authid where rolname = 'postgres'");
        let secret = secret.ok_or("the role postgres has no password")?;
        let port = free_port();
        let (users, settings) = (home.join("users"), home.join("pgbouncer.ini"));
        write(&users, &format!("\"postgres\" \"{secret}\"\n"));
        write(&settings, &configuration(side, port, &users));
        // It refuses to run as root; only the user of this Postgres can reach its socket.
        let owner =
            fs::metadata(side.directory()).map_err(|e| format!("look at the socket: {e}"))?;
        for path in [&home, &users, &settings] {
            chown(path, Some(owner.uid()), Some(owner.gid()))
                .map_err(|e| format!("give files away: {e}"))?;
        }
        let mut command = Command::new(PROGRAM);
        command.arg("-q").arg(&settings).uid(owner.uid()).gid(owner.gid()).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|e| format!("start pgbouncer: {e}"))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut bouncer = Self { child, address, home, password: side.password().to_owned() };
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = bouncer.child.try_wait().map_err(|e| format!("look at pgbouncer: {e}"))?;
            assert!(
                ended.is_none() && began.elapsed() < LIMIT,
                "pgbouncer does not start: {ended:?}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(bouncer)
    }

    /// The way through it over TCP.
    pub(crate) fn side(&self) -> Side {
        Side::tcp("pgbouncer", self.address, coppice::sides::DATABASE, &self.password)
    }

    /// The way through its Unix socket.
    pub(crate) fn local_side(&self) -> Side {
        self.side().with_host(&self.home.display().to_string())
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(side: &Side, port: u16, users: &Path) -> String {
    let (socket, database) = (side.directory().display(), coppice::sides::DATABASE);
    let (users, home) = (users.display(), users.parent().expect("a directory").display());
    format!(
        "[databases]\n{database} = host={socket} port=5432 dbname={database}\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir = {home}\n\
         auth_type = scram-sha-256\nauth_file = {users}\npool_mode = session\n\
         max_client_conn = 300\ndefault_pool_size = 100\nlog_connections = 0\nlog_disconnections = \
         0\n"
    )
}

fn write(path: &PathBuf, text: &str) {
    fs::write(path, text).expect("write a file of pgbouncer");
    fs::set_permissions(path, PermissionsExt::from_mode(0o600)).expect("close a file of pgbouncer");
}
