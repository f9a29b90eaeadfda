// Node's pg, and with it the module tls of Node.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const pg = require('pg');
const version = require('./node-version.cjs');

const { URL: url, OTHER_URL, HOST_URL, CLIENT, CA_FILE } = process.env;
const PLACE = 'select name from place';

async function ask(connectionString, sql, settings = {}) {
    const client = new pg.Client({ connectionString, ...settings });
    await client.connect();
    const { rows } = await client.query(sql);
    const secure = client.connection.stream.encrypted === true;
    await client.end();
    return [Object.values(rows[0])[0], secure];
}

async function main() {
    console.log(`${version('pg')}, Node ${process.versions.node}`);
    assert.deepEqual(await ask(url, PLACE), ['feature/login', false]);
    assert.deepEqual(await ask(OTHER_URL, PLACE), ['other', false]);

    const pool = new pg.Pool({ connectionString: url });
    await pool.query('create table made (client text)');
    await pool.query('insert into made values ($1)', [CLIENT]);
    assert.equal((await pool.query('select client from made')).rows[0].client, CLIENT);
    await pool.end();

    const secure = ['feature/login', true];
    // What libpq calls `require`.
    assert.deepEqual(await ask(`${url}?sslmode=no-verify`, PLACE), secure);
    assert.deepEqual(await ask(`${url}?uselibpqcompat=true&sslmode=require`, PLACE), secure);
    assert.deepEqual(await ask(url, PLACE, { ssl: { rejectUnauthorized: false } }), secure);

    // Node verifies the name in `servername` where the host is an address. So no name below
    // localhost has to be resolved, which not each machine does.
    const ca = fs.readFileSync(CA_FILE, 'utf8');
    const address = HOST_URL.replace(/@[^:]+:/, '@127.0.0.1:');
    const servername = new URL(HOST_URL).hostname;
    assert.deepEqual(await ask(address, PLACE, { ssl: { ca, servername } }), secure);
    // The certificate for addresses and localhost.
    const verified = `${url}?sslmode=verify-full&sslrootcert=${CA_FILE}`;
    assert.deepEqual(await ask(verified, PLACE), secure);
    await assert.rejects(ask(`${url}?sslmode=verify-full`, PLACE), /certificate/);
}

main();
