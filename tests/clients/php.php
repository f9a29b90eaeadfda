<?php
// PHP: pg_connect, which takes the URL, and PDO, which takes its parts.

$place = 'select name from place';

function expect(string $what, string $found, string $expected): void
{
    if ($found !== $expected) {
        fwrite(STDERR, "$what: \"$expected\" was expected, not \"$found\"\n");
        exit(1);
    }
}

function pdo(string $url, string $more = ''): PDO
{
    $part = parse_url($url);
    $database = ltrim($part['path'], '/');
    $dsn = "pgsql:host={$part['host']};port={$part['port']};dbname=$database$more";
    return new PDO($dsn, $part['user'], $part['pass']);
}

[$url, $other, $client] = [getenv('URL'), getenv('OTHER_URL'), getenv('CLIENT')];
$session = pg_connect($url);
echo PHP_VERSION, ', libpq ', (int) pg_version($session)['client'], "\n";
expect('pg_connect', pg_fetch_result(pg_query($session, $place), 0), 'feature/login');
$session = pg_connect($other);
expect('pg_connect to the other branch', pg_fetch_result(pg_query($session, $place), 0), 'other');
expect('PDO', pdo($url)->query($place)->fetchColumn(), 'feature/login');
expect('PDO on the other branch', pdo($other)->query($place)->fetchColumn(), 'other');

$session = pdo($url);
$session->exec('create table made (client text)');
$session->prepare('insert into made values (?)')->execute([$client]);
expect('the row', $session->query('select client from made')->fetchColumn(), $client);

expect('TLS', pdo($url, ';sslmode=require')->query($place)->fetchColumn(), 'feature/login');
$verify = ';hostaddr=127.0.0.1;sslmode=verify-full;sslrootcert=' . getenv('CA_FILE');
$session = pdo(getenv('HOST_URL'), $verify);
expect('sslmode=verify-full', $session->query($place)->fetchColumn(), 'feature/login');
