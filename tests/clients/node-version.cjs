// The version of a package of npm. Not each package lets its package.json be required.

const fs = require('node:fs');

module.exports = (name) =>
    JSON.parse(fs.readFileSync(`${process.env.NODE_PATH}/${name}/package.json`, 'utf8')).version;
