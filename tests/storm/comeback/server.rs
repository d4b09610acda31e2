//! The broker that everybody comes back to: its certificate, its data, its ports, and what it costs.

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use rustix::process::Signal;
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;

use crate::process::Process;

/// Of the times in `/proc`.
const TICKS_PER_S: u64 = 100;

/// See the module comment.
pub(super) struct Server {
    folder: TempDir,
    roots: RootCertStore,
    running: Option<Running>,
}

struct Running {
    process: Process,
    plain: SocketAddr,
    tls: SocketAddr,
}

impl Server {
    /// `key` is `ecdsa` or `rsa:BITS`.
    pub(super) fn start(key: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = match key.split_once("rsa:") {
            Some((_, bits)) => KeyPair::from_pem(&rsa_key(bits)).unwrap(),
            None => KeyPair::generate().unwrap(),
        };
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        fs::write(folder.path().join("server.pem"), certificate.pem()).unwrap();
        fs::write(folder.path().join("server.key"), key.serialize_pem()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let mut server = Self { folder, roots, running: None };
        server.serve(SocketAddr::from(([127, 0, 0, 1], 0)));
        server
    }

    /// For clients that trust it.
    pub(super) fn client_config(&self) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        builder.with_root_certificates(self.roots.clone()).with_no_client_auth()
    }

    /// On the same data, at the same address.
    pub(super) fn restart(&mut self) {
        let tls = self.tls();
        self.end();
        self.serve(tls);
    }

    pub(super) fn stop(mut self) {
        self.end();
    }

    /// Where it speaks TLS.
    pub(super) fn tls(&self) -> SocketAddr {
        self.running().tls
    }

    /// Where it does not.
    pub(super) fn plain(&self) -> SocketAddr {
        self.running().plain
    }

    /// What it has used of all cores since it runs.
    pub(super) fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(self.proc("stat")).unwrap();
        let (_, rest) = stat.rsplit_once(')').unwrap();
        let fields = rest.split_whitespace().skip(11).take(2);
        let ticks: u64 = fields.map(|field| field.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 1000 / TICKS_PER_S)
    }

    /// The most memory that it has had in use, in bytes.
    pub(super) fn peak_bytes(&self) -> u64 {
        let status = fs::read_to_string(self.proc("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kilobytes * 1024
    }

    /// [`Server::peak_bytes`] counts from now on.
    pub(super) fn forget_peak(&self) {
        fs::write(self.proc("clear_refs"), "5").unwrap();
    }

    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.running().process.id())
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("it runs")
    }

    fn end(&mut self) {
        let Running { mut process, .. } = self.running.take().expect("it runs");
        process.signal(Signal::TERM);
        process.succeed();
    }

    fn serve(&mut self, tls: SocketAddr) {
        let folder = self.folder.path();
        let settings = folder.join("settings.toml");
        let file = |name| folder.join(name).display().to_string();
        let (certificate, key) = (file("server.pem"), file("server.key"));
        let listener = format!(
            "[[listeners]]\nlisten = '{tls}'\ncertificate_file = '{certificate}'\nkey_file = '{key}'\n"
        );
        fs::write(&settings, listener).unwrap();
        let built_here = || env!("CARGO_BIN_EXE_mailboxqtt").into();
        let binary = std::env::var_os("MAILBOXQTT_TEST_BINARY").unwrap_or_else(built_here);
        let mut command = Command::new(binary);
        command.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(folder.join("data"));
        command.arg("--config").arg(settings).stdin(Stdio::null());
        let mut process = Process::spawn(&mut command);
        let [plain, tls] = [(); 2].map(|()| {
            process.wait_for("it served", |line| {
                let (_, rest) = line.split_once(" listening on ")?;
                rest.split(' ').next()?.parse().ok()
            })
        });
        self.running = Some(Running { process, plain, tls });
    }
}

/// In PEM.
fn rsa_key(bits: &str) -> String {
    let mut command = Command::new("openssl");
    command.args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt"]);
    let output = command.arg(format!("rsa_keygen_bits:{bits}")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
